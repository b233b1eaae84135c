"""The circuit as a sequence module, with the manners of ``torch.nn.RNN``."""

from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from deq_organics import equations
from deq_organics.checks import check_bool, check_choice, check_positive_int
from deq_organics.dispatch import BACKENDS
from deq_organics.parametrizations import bound_choice, set_bounds_backend
from deq_organics.saved_options import Option, SavesOptions

from .arguments import check_input, check_state
from .backends import Backend, Choice, SequenceWork, backend_names, choose, with_parts
from .cell import ORGaNICsCell
from .dynamics import State
from .packing import blocks_of, packed_like, run_blocks, select
from .precision import full_precision
from .tracing import is_exporting

__all__ = ["ORGaNICsRNN"]

READOUTS = ("y", "rates")


class _Work(NamedTuple):
    """The arguments of a call in one form."""

    blocks: list[Tensor]
    """``(T_i, B_i, input_size)``: one, or for sequences of different lengths one for each
    number of them, decreasing; of the state's type."""
    state: State
    """Before the first step, each ``(num_layers, B_1, hidden_size)``."""


class ORGaNICsRNN(SavesOptions):
    r"""Layers of ORGaNICs circuits stepped through a sequence, one step per element.

    Each layer is an :class:`ORGaNICsCell`; a layer's read-out is the next one's input. Training
    is plain backpropagation through time. Nothing is kept in the module between calls.

    Args:
        input_size: Number of input features.
        hidden_size: Number of excitatory, and of inhibitory, neurons of each layer.
        num_layers: Number of layers.
        batch_first: Take and return ``(B, T, features)`` instead of ``(T, B, features)``; the
            state's layout does not change.
        rectified: See :class:`ORGaNICsCell`, as for the options below it.
        learn_time_constants: See :class:`ORGaNICsCell`.
        backend: ``"reference"`` (the cell under autograd, works everywhere), ``"fused"``
            (backpropagation by hand, first derivatives only; raises where it does not apply),
            ``"native"`` (the same by C kernels, on a CPU), ``"cuda"`` (by Triton kernels) or
            ``"auto"`` (the fastest one that applies; see :meth:`backend_for`).
        recurrence: See :class:`ORGaNICsCell`.
        input_gain: See :class:`ORGaNICsCell`.
        readout: ``"y"``, the membrane potentials, or ``"rates"``, ``y+ = relu(y)^2``.
        rectifier: See :class:`ORGaNICsCell`.
        semisaturation: See :class:`ORGaNICsCell`.
        input_bound: See :class:`ORGaNICsCell`; of the first layer. A bounded layer's read-out is
            at most 1, which is the bound of the next one's input.
        max_step_y: See :class:`ORGaNICsCell`.
        max_step_a: See :class:`ORGaNICsCell`.
        max_step_b: See :class:`ORGaNICsCell`.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters, and of input and output. The state is at
            least float32 (half precision would lose a step's small increments), between the layers
            too; a state in half precision is taken from a module in half precision.

    The state dict holds the options that shape the module's function (all but ``batch_first`` and
    ``backend``, which say how it is called and computed); ``load_state_dict`` refuses other ones.

    ``torch.export`` unrolls the steps of the example input (the batch may be dynamic).
    ``torch.compile`` leaves the module out of its graphs, as it does with ``torch.nn.RNN``.

    Shape:
        - Input: ``(T, B, input_size)``, ``(B, T, input_size)`` with ``batch_first``, or
          ``(T, input_size)``; ``T >= 1``.
        - Output: the same with ``hidden_size``, the last layer's read-out after every step.
        - State, in and out: four tensors ``(num_layers, B, hidden_size)``, or
          ``(num_layers, hidden_size)`` for an unbatched input.
        - A ``PackedSequence`` of sequences of different lengths gives one as output, with the
          conventions of ``torch.nn.RNN``: the states are in the order in which the sequences were
          packed, and the last ones are those after each sequence's own last step.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        batch_first: bool = False,
        rectified: bool = True,
        learn_time_constants: bool = True,
        backend: str = "auto",
        recurrence: str = "bounded",
        input_gain: str = "dynamic",
        readout: str = "y",
        rectifier: str = "before_weights",
        semisaturation: float = 1.0,
        input_bound: float | None = None,
        max_step_y: float = 0.02,
        max_step_a: float = 0.005,
        max_step_b: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size = check_positive_int("input_size", input_size)
        self.hidden_size = check_positive_int("hidden_size", hidden_size)
        self.num_layers = check_positive_int("num_layers", num_layers)
        self.batch_first = check_bool("batch_first", batch_first)
        self.readout = check_choice("readout", readout, READOUTS)
        options: dict[str, Any] = {
            "rectified": rectified,
            "learn_time_constants": learn_time_constants,
            "recurrence": recurrence,
            "input_gain": input_gain,
            "rectifier": rectifier,
            "semisaturation": semisaturation,
            "max_step_y": max_step_y,
            "max_step_a": max_step_a,
            "max_step_b": max_step_b,
            "device": device,
            "dtype": dtype,
        }
        sizes = [self.input_size] + [self.hidden_size] * (self.num_layers - 1)
        self.cells = nn.ModuleList(
            ORGaNICsCell(
                size, self.hidden_size, input_bound=None if layer else input_bound, **options
            )
            for layer, size in enumerate(sizes)
        )
        self.backend = backend

    @property
    def backend(self) -> str:
        """By what sequences are computed, and the bound of ``Wr`` with them."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        self._backend = check_choice("backend", name, backend_names())
        # Backends without kernels leave all to torch.
        set_bounds_backend(self, name if name in BACKENDS else "torch")

    def reset_parameters(self) -> None:
        """Draw the parameters of every layer anew; see :meth:`ORGaNICsCell.reset_parameters`."""
        for cell in self._layers():
            cell.reset_parameters()

    def rest_state(self, batch_size: int | None = None) -> State:
        """The default initial state, see :meth:`ORGaNICsCell.rest_state`, for all layers.

        Shapes ``(num_layers, batch_size, hidden_size)``, or ``(num_layers, hidden_size)`` for
        None.
        """
        return _stack([cell.rest_state(batch_size) for cell in self._layers()])

    def draw_state(
        self, batch_size: int | None = None, *, generator: torch.Generator | None = None
    ) -> State:
        """A random initial state by the published recipe; see :meth:`ORGaNICsCell.draw_state`.

        Shapes as for :meth:`rest_state`. Draw once and pass the same state to every call, as
        the recipe does.
        """
        return _stack([cell.draw_state(batch_size, generator=generator) for cell in self._layers()])

    @property
    def step_scale(self) -> float:
        """A factor on every layer's ``dt / tau``; see :attr:`ORGaNICsCell.step_scale`."""
        return self._layers()[0].step_scale

    @step_scale.setter
    def step_scale(self, value: float) -> None:
        for cell in self._layers():
            cell.step_scale = value

    def state_bound(self, input_bound: float = 1.0) -> State:
        """The bound of every layer's state; see :meth:`ORGaNICsCell.state_bound`."""
        return self._layers()[0].state_bound(input_bound)

    def shaping_options(self) -> dict[str, Option]:
        """The options that the state dict keeps beside those of each layer."""
        return {"num_layers": self.num_layers, "readout": self.readout}

    def backend_for(
        self, x: Tensor | PackedSequence, state: State | None = None
    ) -> Choice[Backend]:
        """Which backend the first layer takes for these arguments, and why; see also its parts.

        The reason names the bound of ``Wr`` where that is computed otherwise.
        """
        work = self._arguments(x, state)
        first = State(*(tensor[0] for tensor in work.state))
        cell = self._layers()[0]
        sequence = SequenceWork(cell.model, cell.parameters_of_step(), work.blocks[0], first)
        choice = choose(self.backend, sequence)
        return with_parts(choice, bound_choice(cell))

    @overload
    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]: ...

    @overload
    def forward(
        self, x: PackedSequence, state: State | None = None
    ) -> tuple[PackedSequence, State]: ...

    def forward(
        self, x: Tensor | PackedSequence, state: State | None = None
    ) -> tuple[Tensor | PackedSequence, State]:
        """Read-out after every step and the last state; see the shapes above.

        Args:
            x: The input.
            state: State before the first step; :meth:`rest_state` if None. Differentiable.

        Raises:
            TypeError: ``x`` or ``state`` is not of the right type.
            ValueError: A shape, dtype or device does not fit, or a value is not finite.
            RuntimeError: The backend named at construction does not apply.
        """
        if is_exporting():
            return self._forward(x, state)
        return self._forward_uncompiled(x, state)

    @torch.compiler.disable(
        recursive=True,
        reason="ORGaNICsRNN loops over the steps: a compiler would unroll the whole sequence",
    )
    def _forward_uncompiled(
        self, x: Tensor | PackedSequence, state: State | None
    ) -> tuple[Tensor | PackedSequence, State]:
        return self._forward(x, state)

    def _forward(
        self, x: Tensor | PackedSequence, state: State | None
    ) -> tuple[Tensor | PackedSequence, State]:
        work = self._arguments(x, state)
        values, last = work.blocks, []
        data = x.data if isinstance(x, PackedSequence) else x
        with full_precision(data.device):
            for layer, cell in enumerate(self._layers()):
                first = State(*(tensor[layer] for tensor in work.state))
                values, final = self._run_layer(cell, values, first)
                last.append(final)
            values = [block.to(cell.input_weight.dtype) for block in values]
        stacked = _stack(last)
        if isinstance(x, PackedSequence):
            return packed_like(x, values), select(stacked, x.unsorted_indices)
        (output,) = values
        if x.ndim == 2:
            return output.squeeze(1), State(*(tensor.squeeze(1) for tensor in stacked))
        return (output.transpose(0, 1) if self.batch_first else output), stacked

    def _run_layer(
        self, cell: ORGaNICsCell, blocks: list[Tensor], first: State
    ) -> tuple[list[Tensor], State]:
        """The read-out of each block, and the last state, each ``(B, n)``."""
        parameters = cell.parameters_of_step()

        def run(rows: Tensor, state: State) -> tuple[Tensor, State]:
            sequence = SequenceWork(cell.model, parameters, rows, state)
            return choose(self.backend, sequence).backend.run(sequence)

        outputs, last = run_blocks(run, blocks, first)
        if self.readout == "rates":
            outputs = [equations.firing_rate(output) for output in outputs]
        return outputs, last

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        for name, default in (
            ("num_layers", 1),
            ("batch_first", False),
            ("backend", "auto"),
            ("readout", "y"),
        ):
            if (value := getattr(self, name)) != default:
                parts.append(f"{name}={value!r}")
        return ", ".join(parts)

    def _layers(self) -> list[ORGaNICsCell]:
        return [cell for cell in self.cells if isinstance(cell, ORGaNICsCell)]

    def _arguments(self, x: Tensor | PackedSequence, state: State | None) -> _Work:
        """The arguments in one form, after all checks."""
        weight = self._layers()[0].input_weight
        batched = True
        if isinstance(x, PackedSequence):
            check_input(x.data, weight, (2,), "(rows, {0}) in a PackedSequence")
            blocks = blocks_of(x)
        else:
            layout = "(B, T, {0})" if self.batch_first else "(T, B, {0})"
            check_input(x, weight, (2, 3), f"{layout} or (T, {{0}})")
            batched = x.ndim == 3
            rows = x.unsqueeze(1) if not batched else x.transpose(0, 1) if self.batch_first else x
            if rows.shape[0] == 0:
                raise ValueError(f"x: got shape {tuple(x.shape)}, expected at least one step")
            blocks = [rows]
        batch = blocks[0].shape[1]
        if state is None:
            state = self.rest_state(batch)
        else:
            between = (batch,) if batched else ()
            state = check_state(state, (self.num_layers, *between, self.hidden_size), weight)
            if not batched:
                state = State(*(tensor.unsqueeze(1) for tensor in state))
            if isinstance(x, PackedSequence):
                state = select(state, x.sorted_indices)
        return _Work([block.to(state.y.dtype) for block in blocks], state)


def _stack(states: list[State]) -> State:
    """States of the layers as one, a leading dimension per layer."""
    return State(*(torch.stack(parts) for parts in zip(*states, strict=True)))
