"""Stability in discrete time: the step's Jacobian along a trajectory, and bounded states."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deq_organics.checks import check_number, check_positive_int

from .arguments import check_input, check_state
from .cell import ORGaNICsCell
from .dynamics import Model, Parameters, State, euler_step, steps, vector_field

__all__ = ["TrajectoryReport", "check_trajectory", "step_jacobian"]

# A step whose largest eigenvalue is 1 up to rounding neither grows nor shrinks.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class TrajectoryReport:
    """Verdict on every checked step of every sequence; ``print`` it for a summary.

    ``S`` is the number of checked steps and ``(...)`` the batch dimension, if there is one. A
    verdict is about the dynamics frozen at one state: how a small perturbation changes there.
    """

    checked: Tensor
    """Indices ``(S,)`` of the checked steps."""
    spectral_radius: Tensor
    """Largest modulus of the eigenvalues of the step's Jacobian, ``(S, ...)``; NaN where the
    state is not finite."""
    rightmost: Tensor
    """Largest real part of the eigenvalues of ``dt`` times the continuous circuit's Jacobian,
    ``(S, ...)``, dimensionless: negative where the continuous circuit is stable."""
    stable: Tensor
    """Boolean ``(S, ...)``: all eigenvalues of the step lie inside the unit circle."""
    step_too_large: Tensor
    """Boolean ``(S, ...)``: the continuous circuit is stable and Euler's step is not."""
    largest_step: Tensor
    """``(S, ...)``: the factor on every ``dt / tau`` at which the step would lose stability, where
    the continuous circuit is stable; NaN elsewhere."""
    largest_magnitude: State
    """Largest magnitudes of ``y``, ``a``, ``b`` and ``b0`` over the whole trajectory, ``(...)``."""
    bounded: Tensor
    """Boolean ``(...)``: every state stayed finite and below the limit, along this sequence. Of
    another sequence that says nothing."""
    stated_bound: State | None = None
    """What the states of every sequence with inputs within the cell's ``input_bound`` stay within,
    proved (:meth:`ORGaNICsCell.state_bound`). None where nothing is proved: neither
    ``recurrence="spectral"`` nor ``"unconstrained"`` nor ``"identity"`` bounds the states."""

    def __str__(self) -> str:
        total = self.stable.numel()
        lines = [
            f"TrajectoryReport of {total} steps: {int(self.stable.sum())} stable, "
            f"largest spectral radius {_largest(self.spectral_radius):.6g}"
        ]
        if count := int(self.step_too_large.sum()):
            factor = float(self.largest_step[self.step_too_large].min())
            lines.append(
                f"  Euler's step size is the cause in {count}: the continuous circuit is stable "
                f"there, and the step would be with every dt/tau below {factor:.3g} times its value"
            )
        unstable = ~self.stable & ~self.step_too_large & self.spectral_radius.isfinite()
        if count := int(unstable.sum()):
            lines.append(f"  the continuous circuit itself is unstable in {count}")
        if count := int((~self.spectral_radius.isfinite()).sum()):
            lines.append(f"  the state is not finite in {count}")
        bounded, total = int(self.bounded.sum()), self.bounded.numel()
        lines.append(f"  bounded: {bounded} of {total} ({_describe(self.largest_magnitude)})")
        if self.stated_bound is None:
            lines.append("  along these sequences; nothing bounds the states along others")
        else:
            limits = _describe(self.stated_bound)
            lines.append(f"  no sequence within the cell's input_bound leaves {limits}")
        return "\n".join(lines)


def step_jacobian(
    model: Model, parameters: Parameters, x: Tensor, state: State
) -> tuple[Tensor, Tensor]:
    """Jacobian of one Euler step and of ``dt`` times the continuous field, at states ``(B, n)``.

    Each ``(B, m, m)`` in the order ``(y, a, b, b0)``; ``m`` is ``4n``, or ``2n`` for fixed gains,
    which do not move.
    """
    moving = 2 if parameters.gain is None else 4
    held = state[moving:]

    def field(flat: Tensor, row: Tensor, *fixed: Tensor) -> Tensor:
        here = State(*flat.chunk(moving), *fixed)
        return torch.cat(vector_field(model, parameters, row, here)[:moving])

    jacobians = torch.func.vmap(torch.func.jacrev(field))(torch.cat(state[:moving], -1), x, *held)
    step = torch.cat([part for part in steps(parameters)[:moving] if isinstance(part, Tensor)])
    continuous = step.unsqueeze(-1) * jacobians
    identity = torch.eye(continuous.shape[-1], dtype=continuous.dtype, device=continuous.device)
    return identity + continuous, continuous


@torch.no_grad()
def check_trajectory(
    cell: ORGaNICsCell,
    x: Tensor,
    state: State | None = None,
    *,
    every: int = 1,
    limit: float = 1e3,
) -> TrajectoryReport:
    """Drive a cell with a sequence and examine its steps' linear stability, in double precision.

    What it finds holds for this sequence. Only ``recurrence="bounded"`` bounds the states along
    all others: with ``"spectral"``, ``"unconstrained"`` and ``"identity"`` another input, or a
    longer one, can make the states grow without end, however stable the steps here are.

    Args:
        cell: The cell; a layer of an ``ORGaNICsRNN`` is ``rnn.cells[i]``.
        x: Input, ``(T, B, input_size)`` or ``(T, input_size)``.
        state: State before the first step, ``(B, n)`` or ``(n,)``; if None, the cell's
            initial state.
        every: Examine the Jacobian at every so many steps (it has ``4n`` rows); the bounds are
            those of all steps.
        limit: Magnitude from which a state no longer counts as bounded.

    Returns:
        Eigenvalues' verdicts per checked step, and bounds per sequence.

    Raises:
        TypeError: ``cell``, ``x`` or ``state`` is not of the right type.
        ValueError: A shape, dtype, device or value does not fit.
    """
    if not isinstance(cell, ORGaNICsCell):
        raise TypeError(f"cell: got {type(cell).__name__}, expected an ORGaNICsCell")
    every = check_positive_int("every", every)
    limit = check_number("limit", limit, low=0.0, open_low=True)
    check_input(x, cell.input_weight, (2, 3), "(T, B, {0}) or (T, {0})")
    if x.shape[0] == 0:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected at least one step")
    shape = (*x.shape[1:-1], cell.hidden_size)
    if state is None:
        state = State(*(part.expand(shape) for part in cell.rest_state()))
    state = check_state(state, shape, cell.input_weight)
    parameters = cell.parameters_of_step().to(torch.float64)
    batch = x.shape[1:-1]
    # Sizes are spelled out: an empty batch leaves nothing to infer them from.
    rows = x.double().reshape(x.shape[0], batch.numel(), cell.input_size)
    current = State(*(part.double().reshape(batch.numel(), cell.hidden_size) for part in state))

    largest = [part.abs().amax(-1) for part in current]
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for index, row in enumerate(rows):
        if index % every == 0:
            found.append(_spectrum(cell.model, parameters, row, current))
        current = euler_step(cell.model, parameters, row, current)
        largest = [
            torch.maximum(known, part.abs().amax(-1))
            for known, part in zip(largest, current, strict=True)
        ]
    radius, real, factor = (
        torch.stack(values).reshape(len(found), *batch) for values in zip(*found, strict=True)
    )
    stable = radius < 1.0 - _ROUNDING
    too_large = ~stable & (real < 0) & radius.isfinite()
    bounded = torch.stack([part < limit for part in largest]).all(0)
    return TrajectoryReport(
        torch.arange(0, x.shape[0], every, device=x.device),
        radius,
        real,
        stable,
        too_large,
        torch.where(real < 0, factor, torch.nan),
        State(*(part.reshape(batch) for part in largest)),
        bounded.reshape(batch),
        _stated_bound(cell),
    )


def _stated_bound(cell: ORGaNICsCell) -> State | None:
    """The cell's bound for the inputs that it is made for; None where it states none."""
    if cell.box is None:
        return None
    try:
        return cell.state_bound(cell.box.input_bound)
    except ValueError:
        # Rounding may outgrow the margins of such steps.
        return None


def _spectrum(
    model: Model, parameters: Parameters, x: Tensor, state: State
) -> tuple[Tensor, Tensor, Tensor]:
    """Spectral radius of the step, rightmost real part and largest factor on ``dt``, each (B,)."""
    finite = torch.stack([part.isfinite().all(-1) for part in state]).all(0)
    radius, real, factor = (torch.full_like(finite, torch.nan, dtype=x.dtype) for _ in range(3))
    index = finite.nonzero().squeeze(-1)
    if index.numel():
        here = State(*(part[index] for part in state))
        _, continuous = step_jacobian(model, parameters, x[index], here)
        # The step's eigenvalues are 1 + those of dt times the field: one decomposition for both.
        values = torch.linalg.eigvals(continuous)
        radius[index] = (1.0 + values).abs().amax(-1)
        real[index] = values.real.amax(-1)
        factor[index] = (-2.0 * values.real / values.abs().square()).amin(-1)
    return radius, real, factor


def _largest(values: Tensor) -> float:
    return float(values[~values.isnan()].max()) if (~values.isnan()).any() else float("nan")


def _describe(magnitudes: State) -> str:
    parts = magnitudes._asdict().items()
    return ", ".join(f"|{name}| {_largest(values):.3g}" for name, values in parts)
