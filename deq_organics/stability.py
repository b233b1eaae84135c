"""Linear stability of a circuit's steady states, by the eigenvalues of the Jacobian."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .circuit import Circuit
from .layer import ORGaNICsDEQ
from .solvers.spectrum import leading_eigenvalues
from .steady_state import SteadyState

__all__ = ["StabilityReport", "check_stability"]


@dataclass(frozen=True)
class StabilityReport:
    """Verdict on the linear stability of each circuit of a batch; ``print`` it for a summary."""

    leading_eigenvalue: Tensor
    """Jacobian's eigenvalue with the largest real part, complex ``(...)``, in 1/time (the unit of
    the time constants); of a conjugate pair the one with the nonnegative imaginary part. NaN
    where there is no steady state."""
    stable: Tensor
    """Boolean ``(...)``: all eigenvalues have negative real parts. False without steady state."""
    margin: Tensor
    """Minus the largest real part, ``(...)``, in 1/time: positive where stable."""

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
        if missing := total - int(known.sum()):
            lines.append(f"  without steady state: {missing}")
        return "\n".join(lines)


@torch.no_grad()
def check_stability(
    target: Circuit | ORGaNICsDEQ, state: SteadyState | Tensor | None = None
) -> StabilityReport:
    """Eigenvalues of the Jacobian at each circuit's steady state, in double precision.

    Args:
        target: Circuits, or a layer.
        state: The circuits' steady state (solved for if left out), or the layer's input
            ``(*, input_size)``.

    Returns:
        Leading eigenvalue, verdict and margin for each circuit.

    Raises:
        TypeError: ``state`` does not go with ``target``.
        ValueError: The shape of ``state`` is not that of the circuits.
    """
    circuit, state = _circuit_and_state(target, state)
    shape = circuit.batch_shape
    if tuple(state.y.shape) != (*shape, circuit.n):
        raise ValueError(
            f"state: got shape {tuple(state.y.shape)}, expected {(*shape, circuit.n)} "
            "as the circuit"
        )
    y, a = state.y.reshape(-1, circuit.n), state.a.reshape(-1, circuit.n)
    found = state.converged.reshape(-1)
    problem = circuit.flatten()
    leading = torch.full(
        found.shape, complex(torch.nan, torch.nan), dtype=torch.complex128, device=y.device
    )
    rows = found.nonzero().squeeze(-1)
    leading[rows] = leading_eigenvalues(problem.select(rows), y[rows], a[rows])
    leading = leading.reshape(shape)
    return StabilityReport(leading, leading.real < 0, -leading.real)


def _circuit_and_state(
    target: Circuit | ORGaNICsDEQ, state: SteadyState | Tensor | None
) -> tuple[Circuit, SteadyState]:
    if isinstance(target, ORGaNICsDEQ):
        if not isinstance(state, Tensor):
            raise TypeError(
                f"state: got {type(state).__name__}, expected the layer's input, a Tensor"
            )
        circuit = target.circuit(state)
        options = (target.solver, target.tol, target.max_iter)
        return circuit, circuit.steady_state(*options, on_failure="ignore")
    if not isinstance(target, Circuit):
        raise TypeError(f"target: got {type(target).__name__}, expected a Circuit or ORGaNICsDEQ")
    if state is None:
        return target, target.steady_state(on_failure="ignore")
    if not isinstance(state, SteadyState):
        raise TypeError(f"state: got {type(state).__name__}, expected a SteadyState")
    return target, state
