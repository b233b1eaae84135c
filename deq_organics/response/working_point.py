"""The stable steady states around which circuits respond linearly."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..caller_warnings import warn_caller
from ..checks import physical
from ..circuit import Circuit
from ..errors import SteadyStateWarning
from ..steady_state.record import SteadyState

__all__ = ["WorkingPoint", "working_point"]

# Relative residual above which a state is not taken for a fixed point.
_LARGEST_RESIDUAL = 1e-3


class WorkingPoint(NamedTuple):
    """Steady states in double precision; where there is no stable one, stand-ins."""

    jacobian: Tensor
    """``(..., 2n, 2n)``; ``-I`` for a stand-in."""
    eigenvalues: Tensor
    """Those of the Jacobian, without a gradient, ``(..., 2n)``."""
    stable: Tensor
    """Where there is a stable steady state, ``(...)``."""
    y: Tensor
    """``(..., n)``; 1 where there is no fixed point."""
    a: Tensor


def working_point(circuit: Circuit, state: SteadyState | None) -> WorkingPoint:
    """Each circuit's stable steady state; warns of circuits without one.

    In double precision: what stiff circuits do slowly is lost in the rounding of what is fast.
    """
    if state is None:
        tol = min(1e-6, 512.0 * torch.finfo(circuit.input_drive.dtype).eps)
        state = circuit.steady_state(tol=tol, on_failure="ignore")
    elif not isinstance(state, SteadyState):
        raise TypeError(f"state: got {type(state).__name__}, expected a SteadyState")
    shape, found = (*circuit.batch_shape, circuit.n), state.converged
    for part in (state.y, state.a):
        if tuple(part.shape) != shape:
            raise ValueError(f"state: got shape {tuple(part.shape)}, expected {shape} as circuit")
    double = circuit.to(torch.float64)
    fixed = found & _is_fixed_point(double, state)
    # NaN would enter the gradients of weights that all circuits share, even multiplied by zero.
    y, a = (torch.where(fixed.unsqueeze(-1), part, 1.0) for part in (state.y, state.a))
    jacobian = double.jacobian(y.double(), a.double())
    eigenvalues = torch.linalg.eigvals(jacobian.detach())
    stable = fixed & (eigenvalues.real < 0).all(-1)
    if bad := int((~physical(stable)).sum()):
        missing, moving = (int((~physical(kind)).sum()) for kind in (found, fixed))
        reasons = [f"{missing}: no steady state"]
        if moving > missing:
            reasons.append(f"{moving - missing}: the given state is no fixed point")
        reasons.append(f"{bad - moving}: an unstable one")
        warn_caller(
            f"no linear response of {bad} of {found.numel()} circuits ({'; '.join(reasons)}). "
            "Their rows are NaN.",
            SteadyStateWarning,
        )
    identity = torch.eye(2 * circuit.n, dtype=jacobian.dtype, device=jacobian.device)
    jacobian = torch.where(stable[..., None, None], jacobian, -identity)
    eigenvalues = torch.where(stable.unsqueeze(-1), eigenvalues, -1.0)
    return WorkingPoint(jacobian, eigenvalues, stable, y.double(), a.double())


@torch.no_grad()
def _is_fixed_point(circuit: Circuit, state: SteadyState) -> Tensor:
    """Whether the equations hold at a state, whoever made it, ``(...)``."""
    y, a = (part.double().reshape(-1, circuit.n) for part in (state.y, state.a))
    residual = circuit.flatten().relative_residual(y, a)
    return (residual <= _LARGEST_RESIDUAL).reshape(circuit.batch_shape)
