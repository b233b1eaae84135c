"""Linear stability of a circuit's steady states: the checker and the certificate for ``Wr = I``."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import equations
from .circuit import Circuit
from .layer import ORGaNICsDEQ
from .solvers.spectrum import leading_eigenvalues
from .steady_state import SteadyState

__all__ = ["Certificate", "StabilityReport", "check_stability", "m_matrix_certificate"]


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


class Certificate(NamedTuple):
    """Theorem 4.3's proof of stability for one circuit or a batch, without eigenvalues."""

    certified: Tensor
    """Boolean ``(...)``: the damping matrix is a nonsingular M-matrix, so the circuit is stable."""
    lyapunov_diagonal: Tensor
    """Positive ``t`` of shape ``(..., n)`` with ``T B + B^T T`` positive definite, ``T = D(t)``."""


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


@torch.no_grad()
def m_matrix_certificate(circuit: Circuit) -> Certificate:
    """Prove the stability of circuits with ``Wr = I`` at their steady state (Thms 4.1-4.3).

    The damping matrix ``B`` of Eq. 11 is a Z-matrix; ``x = B^-1 1 > 0`` shows that it is a
    nonsingular M-matrix, hence Lyapunov diagonally stable, with ``T = D((B^-T 1) / (B^-1 1))``.

    Raises:
        ValueError: The circuit has recurrent weights other than None.
    """
    y, a = (part.double() for part in circuit.closed_form())
    m = circuit.exponent
    rate, pool = (
        equations.inhibitory_firing_rate(a, m),
        equations.power(equations.drive(y, circuit.rectified), m),
    )
    tau_y, tau_a = circuit.tau_y.double(), circuit.tau_a.double()
    damping = torch.diag_embed(rate / tau_y + 1.0 / tau_a) - (
        circuit.normalization_weight.double() * pool.unsqueeze(-2) / tau_a.unsqueeze(-1)
    )
    ones = torch.ones_like(rate)
    right, info = torch.linalg.solve_ex(damping, ones)
    left, _ = torch.linalg.solve_ex(damping.mT, ones)
    with equations.full_precision(damping):
        image = equations.matvec(damping, right)
    certified = (info == 0) & ((right > 0) & (left > 0) & (image > 0)).all(-1)
    return Certificate(certified, left / right)


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
