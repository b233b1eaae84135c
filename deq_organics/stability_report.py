"""Are fixed points stable? A verdict that is proved, and the eigenvalue that leads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import as_float_tensor, check_broadcast, check_same_device
from .circuit import Circuit
from .circuits import DynamicalCircuit, JointSteadyState
from .circuits.stability import judge
from .layer import ORGaNICsDEQ
from .stability.cayley import Verdict
from .stability.spectrum import leading_eigenvalues, verdicts
from .steady_state.record import SteadyState

__all__ = ["StabilityReport", "check_stability"]

# Relative residual of a fixed point, whatever the dtype: what a loose solve leaves is judged too.
_LARGEST_RESIDUAL = 2e-3


@dataclass(frozen=True)
class StabilityReport:
    """Verdict on the linear stability of each circuit of a batch; ``print`` it for a summary."""

    leading_eigenvalue: Tensor
    """Jacobian's eigenvalue with the largest real part, complex ``(...)``, in 1/time (the unit of
    the time constants); of a conjugate pair the one with the nonnegative imaginary part. NaN
    where there is no steady state."""
    stable: Tensor
    """Boolean ``(...)``: all eigenvalues are proved to have negative real parts. False without
    steady state."""
    margin: Tensor
    """Minus the largest real part, ``(...)``, in 1/time: positive where stable."""
    undecided: Tensor
    """Boolean ``(...)``: neither stability nor instability could be proved, since rounding may
    change the sign of the largest real part. Such circuits do not count as stable."""
    rejected: Tensor
    """Boolean ``(...)``: the state that was given is no fixed point, by its residual."""

    def __str__(self) -> str:
        real = self.leading_eigenvalue.real.flatten()
        total, known = real.numel(), ~real.isnan()
        count = int(self.stable.sum())
        share = f"{100 * count / total:.2f} %" if total else "none"
        lines = [f"StabilityReport of {total} circuits: {count} stable ({share})"]
        if known.any():
            real = real[known]
            lines.append(
                f"  largest real part: max {real.max():.4g}, median {real.median():.4g}, "
                f"min {real.min():.4g} (1/time)"
            )
            oscillating = int((self.leading_eigenvalue.flatten()[known].imag != 0).sum())
            lines.append(f"  leading mode oscillates in {oscillating} of {int(known.sum())}")
        if undecided := int(self.undecided.sum()):
            lines.append(f"  undecided, largest real part within rounding of 0: {undecided}")
        rejected = int(self.rejected.sum())
        if missing := total - int(known.sum()) - rejected:
            lines.append(f"  without steady state: {missing}")
        if rejected:
            lines.append(f"  the given state is no fixed point: {rejected}")
        return "\n".join(lines)


@torch.no_grad()
def check_stability(
    target: Circuit | ORGaNICsDEQ | DynamicalCircuit,
    state: SteadyState
    | JointSteadyState
    | Sequence[Tensor]
    | Mapping[str, Tensor]
    | Tensor
    | None = None,
) -> StabilityReport:
    """Prove whether each circuit is stable at its steady state, and find what decays slowest.

    All of it is done in double precision. A state counts as a fixed point up to a relative residual
    of 2e-3 (see ``Problem.relative_residual``): it is the exact one of a circuit whose input drive
    and inhibitory drive differ by no more than that. So the states of a solve with ``tol=1e-3`` are
    judged too, with that reservation.

    Args:
        target: Circuits of any kind, or a layer. For those that are no :class:`Circuit` a state
            counts as a fixed point if a step of Newton's method is shorter than 2e-3 of it, and the
            precision is double where they have ``to(dtype)``.
        state: The circuits' steady state: a :class:`SteadyState`, or ``(y, a)`` of shapes that
            broadcast to the circuits' ``(..., n)``; it is solved for if left out. Of a layer, its
            input ``(*, input_size)``.

    Returns:
        Leading eigenvalue, verdict and margin for each circuit; without a gradient.

    Raises:
        TypeError: ``state`` does not go with ``target``.
        ValueError: The shape or the device of ``state`` is not that of the circuits.
    """
    known = isinstance(target, Circuit | ORGaNICsDEQ)
    if not known and isinstance(target, DynamicalCircuit):
        judged = judge(target, state)  # type: ignore[arg-type]
        stable, undecided = (judged.verdict == v for v in (Verdict.INSIDE, Verdict.UNDECIDED))
        return StabilityReport(
            judged.leading, stable, -judged.leading.real, undecided, judged.rejected
        )
    circuit, y, a, converged = _circuit_and_state(target, state)
    shape, problem = circuit.batch_shape, circuit.flatten().to(torch.float64)
    y, a = (part.reshape(-1, circuit.n).double() for part in (y, a))
    found = converged.reshape(-1)
    rejected = found & ~(problem.relative_residual(y, a) <= _LARGEST_RESIDUAL)
    leading = torch.full(
        found.shape, complex(torch.nan, torch.nan), dtype=torch.complex128, device=y.device
    )
    verdict = torch.full(found.shape, int(Verdict.OUTSIDE), device=y.device)
    rows = (found & ~rejected).nonzero().squeeze(-1)
    if rows.numel():
        problem, y, a = problem.select(rows), y[rows], a[rows]
        leading[rows] = leading_eigenvalues(problem, y, a)
        verdict[rows] = verdicts(problem, y, a)
    leading, verdict = leading.reshape(shape), verdict.reshape(shape)
    return StabilityReport(
        leading,
        verdict == Verdict.INSIDE,
        -leading.real,
        verdict == Verdict.UNDECIDED,
        rejected.reshape(shape),
    )


def _circuit_and_state(target: Any, state: Any) -> tuple[Circuit, Tensor, Tensor, Tensor]:
    """The circuits, their ``y`` and ``a`` ``(..., n)``, and where these are said to be solved."""
    if isinstance(target, ORGaNICsDEQ):
        if not isinstance(state, Tensor):
            raise TypeError(
                f"state: got {type(state).__name__}, expected the layer's input, a Tensor"
            )
        circuit = target.circuit(state)
        # The state that the layer itself returns, stable or not.
        state = circuit.steady_state(
            target.solver,
            target.tol,
            target.max_iter,
            "ignore",
            target.verify_stability,
            target.backend,
        )
    elif isinstance(target, Circuit):
        circuit = target
    else:
        raise TypeError(f"target: got {type(target).__name__}, expected a Circuit or ORGaNICsDEQ")
    if state is None:
        state = circuit.steady_state(on_failure="ignore")
    if isinstance(state, SteadyState):
        y, a, converged = state.y, state.a, state.converged
    elif isinstance(state, tuple) and len(state) == 2:
        y, a = state
        converged = torch.ones(circuit.batch_shape, dtype=torch.bool, device=circuit.tau_y.device)
    else:
        raise TypeError(
            f"state: got {type(state).__name__}, expected a SteadyState or a tuple (y, a)"
        )
    shape = (*circuit.batch_shape, circuit.n)
    for name, part in (("y", y), ("a", a)):
        as_float_tensor(f"state, {name}", part)
        check_same_device("input_drive", circuit.input_drive, f"state, {name}", part)
        if isinstance(state, tuple):
            expected = f"one that broadcasts to {shape} as the circuit"
            check_broadcast(f"state, {name}", part.shape, shape, expected)
        elif tuple(part.shape) != shape:
            raise ValueError(
                f"state: got shape {tuple(part.shape)}, expected {shape} as the circuit"
            )
    if converged.shape != circuit.batch_shape:
        raise ValueError(
            f"state, converged: got shape {tuple(converged.shape)}, "
            f"expected {tuple(circuit.batch_shape)} as the circuit"
        )
    return circuit, y.expand(shape), a.expand(shape), converged
