"""Errors of a sequence module's outputs and gradients against float64, on random data."""

import copy
from typing import NamedTuple, cast

import torch
from torch import Tensor

from recurrent import ORGaNICsRNN, State

__all__ = ["Errors", "Probe", "derivatives", "errors", "exact"]


class Probe(NamedTuple):
    """Random inputs of a module, and random gradients of its outputs."""

    x: Tensor
    """``(T, B, input_size)``"""
    state: State
    """Before the first step, each ``(1, B, n)``."""
    grad_output: Tensor
    """``(T, B, n)``"""
    grad_state: State
    """Of the last state."""

    @classmethod
    def draw(cls, rnn: ORGaNICsRNN, steps: int, batch: int, seed: int) -> "Probe":
        """Inputs uniform in (0, 1), a state by the published recipe, normal gradients."""
        like = cast(Tensor, rnn.cells[0].semisaturation)
        torch.manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, device=like.device)

        n, parts = rnn.hidden_size, len(State._fields)
        return cls(
            torch.rand(steps, batch, rnn.input_size, device=like.device),
            rnn.draw_state(batch),
            normal(steps, batch, n),
            State(*(normal(1, batch, n) for _ in range(parts))),
        )

    def double(self) -> "Probe":
        return Probe(
            self.x.double(),
            State(*(part.double() for part in self.state)),
            self.grad_output.double(),
            State(*(part.double() for part in self.grad_state)),
        )


class Errors(NamedTuple):
    """Relative errors ``|found - exact| / |exact|``."""

    outputs: float
    """The worst of the output and the parts of the last state."""
    gradients: dict[str, float]
    """Of every parameter, the input and the initial state."""

    @property
    def worst_gradient(self) -> tuple[str, float]:
        """The name and error of the worst gradient; NaN is worst of all."""
        name = max(self.gradients, key=lambda name: _rank(self.gradients[name]))
        return name, self.gradients[name]


def derivatives(rnn: ORGaNICsRNN, probe: Probe) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs and gradients, by name."""
    x = probe.x.detach().clone().requires_grad_()
    state = State(*(part.detach().clone().requires_grad_() for part in probe.state))
    output, last = rnn(x, state)
    leaves = {
        **{_plain(name): parameter for name, parameter in rnn.named_parameters()},
        "input": x,
        **{f"initial {name}": part for name, part in state._asdict().items()},
    }
    gradients = torch.autograd.grad(
        [output, *last], list(leaves.values()), [probe.grad_output, *probe.grad_state]
    )
    outputs = {"output": output.detach()}
    outputs |= {f"last {name}": part.detach() for name, part in last._asdict().items()}
    return outputs, dict(zip(leaves, gradients, strict=True))


def exact(rnn: ORGaNICsRNN, probe: Probe) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs and gradients of the same parameters by the reference backend in float64."""
    reference = copy.deepcopy(rnn).double()
    reference.backend = "reference"
    return derivatives(reference, probe.double())


def errors(
    found: tuple[dict[str, Tensor], dict[str, Tensor]],
    exact: tuple[dict[str, Tensor], dict[str, Tensor]],
) -> Errors:
    """Compare what two calls of :func:`derivatives` found."""
    outputs, gradients = (
        {name: _relative_error(part[name], value) for name, value in truth.items()}
        for part, truth in zip(found, exact, strict=True)
    )
    return Errors(max(outputs.values(), key=_rank), gradients)


def _plain(name: str) -> str:
    """The name of a parameter without the modules that it sits in."""
    return name.removeprefix("cells.0.").replace("parametrizations.", "").removesuffix(".original")


def _relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def _rank(error: float) -> float:
    return error if error == error else float("inf")
