"""The loss and the gradients of a training run, and its end where they are not finite."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from program.errors import ExampleError

# Names of parameters in a message; an error in the loss mostly spoils all of them.
_SHOWN = 3


class Watched:
    """The losses of an epoch and the norms of their gradients, read from the device together.

    Args:
        model: what is trained.
        epoch: the number of the epoch.
        steps: how many steps it has.
        advice: the end of an error's message.
    """

    def __init__(self, model: nn.Module, epoch: int, steps: int, advice: str) -> None:
        self._model, self._advice = model, advice
        self._epoch, self._steps = epoch, steps
        self._names = [name for name, _ in self._gradients()]
        self._unread: list[Tensor] = []
        self._read: list[tuple[float, float]] = []

    def add(self, loss: Tensor) -> None:
        """The loss of a step, which need not be over, and the gradients that the model has."""
        gradients = dict(self._gradients())
        self._names = list(gradients)
        norms = [torch.linalg.vector_norm(gradient) for gradient in gradients.values()]
        total = torch.linalg.vector_norm(torch.stack(norms or [torch.zeros_like(loss.detach())]))
        self._unread.append(torch.stack([loss.detach(), total, *norms]))

    def read(self) -> float:
        """Waits for all steps and returns the last loss.

        Raises:
            ExampleError: a loss or a gradient is not finite; the message says which, and in which
                step for the first time.
        """
        if self._unread:
            steps = torch.stack(self._unread).tolist()
            self._unread.clear()
            for loss, total, *norms in steps:
                self._read.append((loss, total))
                if not (math.isfinite(loss) and math.isfinite(total)):
                    raise self._not_finite(loss, total, norms)
        return self._read[-1][0] if self._read else math.nan

    def check_weights(self) -> None:
        """Ends the run where a step has left weights that are not finite."""
        parameters = dict(self._model.named_parameters())
        finite = torch.stack([torch.isfinite(p.detach()).all() for p in parameters.values()])
        if not finite.all():
            broken = [
                name for name, fine in zip(parameters, finite.tolist(), strict=True) if not fine
            ]
            raise ExampleError(
                f"weights are not finite after step {len(self._read)} of {self._steps} in epoch "
                f"{self._epoch}: {_listed(broken)}; {self._advice}"
            )

    def summary(self) -> dict[str, float]:
        """The mean loss, and the mean and the largest norm, of all that was read."""
        losses, norms = zip(*self._read, strict=True)
        return {
            "loss": sum(losses) / len(losses),
            "gradient_norm": sum(norms) / len(norms),
            "largest_gradient_norm": max(norms),
        }

    def _gradients(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._model.named_parameters():
            if parameter.grad is not None:
                yield name, parameter.grad

    def _not_finite(self, loss: float, total: float, norms: list[float]) -> ExampleError:
        broken = [
            f"the gradient of {name}"
            for name, norm in zip(self._names, norms, strict=True)
            if not math.isfinite(norm)
        ]
        if not math.isfinite(loss):
            broken.insert(0, "the loss")
        # Squares of finite gradients may overflow.
        found = _listed(broken) if broken else "the norm of all gradients together"
        return ExampleError(
            f"the loss is {loss} and the norm of its gradient {total} in epoch {self._epoch}, step "
            f"{len(self._read)} of {self._steps}; expected finite ones, not finite: {found}; "
            f"{self._advice}"
        )


def _listed(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
