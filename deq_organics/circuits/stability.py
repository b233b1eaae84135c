"""Stability of circuits of any kind at their steady states, proved from the dense Jacobian."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import physical
from ..stability.cayley import Verdict
from ..stability.matrices import rightmost, side_of_matrices
from .newton import Plain
from .protocol import DynamicalCircuit
from .steady_state import JointSteadyState, joint_steady_state, state_of
from .system import System

__all__ = ["Judged", "jacobian_at", "judge"]

# Relative distance to a fixed point above which a state is not taken for one.
_LARGEST_RESIDUAL = 2e-3


class Judged(NamedTuple):
    """What is known of each circuit, ``(...)``."""

    leading: Tensor
    """Complex, NaN where there is no fixed point."""
    verdict: Tensor
    rejected: Tensor


def judge(
    circuit: DynamicalCircuit,
    state: JointSteadyState | Sequence[Tensor] | Mapping[str, Tensor] | None,
) -> Judged:
    """Verdicts on circuits at a state, which is solved for if it is None."""
    system, point, found = _point(circuit, state)
    shape = system.batch
    fixed, jacobian = _examine(system, point, found)
    rows = fixed.reshape(-1).nonzero().squeeze(-1)
    chosen = jacobian.reshape(-1, *jacobian.shape[-2:])[rows]
    leading = torch.full(
        (shape.numel(),), complex(torch.nan, torch.nan), dtype=torch.complex128, device=point.device
    )
    verdict = torch.full((shape.numel(),), int(Verdict.OUTSIDE), device=point.device)
    if rows.numel():
        leading[rows], verdict[rows] = rightmost(chosen), side_of_matrices(chosen)
    return Judged(leading.reshape(shape), verdict.reshape(shape), found & ~fixed)


def jacobian_at(
    circuit: DynamicalCircuit,
    state: JointSteadyState | Sequence[Tensor] | Mapping[str, Tensor] | None,
) -> tuple[System, Tensor, Tensor, Tensor]:
    """The system, its Jacobian ``(..., N, N)`` where it is proved stable (else ``-I``), and where.

    In double precision; differentiable. The last one tells which circuits have a fixed point.
    """
    system, point, found = _point(circuit, state)
    with torch.no_grad():
        fixed, plain = _examine(system, physical(point), found)
        safe = torch.where(fixed[..., None, None], plain, 0.0)
        verdict = side_of_matrices(safe.reshape(-1, *plain.shape[-2:])).reshape(system.batch)
    stable = fixed & (verdict == Verdict.INSIDE)
    # NaN would enter the gradients of weights that all circuits share, even multiplied by zero.
    at = torch.where(stable.unsqueeze(-1), point, physical(system.rest))
    minus = -torch.eye(system.width, dtype=torch.float64, device=at.device)
    jacobian = torch.where(stable[..., None, None], system.jacobian(at).double(), minus)
    return system, jacobian, stable, fixed


def _point(circuit: DynamicalCircuit, state: Any) -> tuple[System, Tensor, Tensor]:
    """The system, in double precision where it can be, the state, and where there is one."""
    system = System(circuit)
    if state is None:
        state = joint_steady_state(circuit, tol=1e-9, on_failure="ignore")
    if isinstance(state, JointSteadyState):
        if state.names != system.names or state.state.shape != system.rest.shape:
            raise ValueError(
                f"state: got {state.names} of shape {tuple(state.state.shape)}, expected "
                f"{system.names} of shape {tuple(system.rest.shape)} as the circuit"
            )
        point, found = state.state, state.converged
    else:
        point = state_of(system, state, "state")
        found = torch.ones(system.batch, dtype=torch.bool, device=point.device)
    if system.dtype != torch.float64 and hasattr(circuit, "to"):
        system, point = System(circuit.to(torch.float64)), point.double()
    return system, point, found


@torch.no_grad()
def _examine(system: System, point: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Which states are fixed points, by the length of a step of Newton's, and the Jacobians."""
    plain = Plain(system, 1e-6)
    flat = torch.where(found.unsqueeze(-1), point, physical(system.rest))
    flat = flat.reshape(-1, system.width)
    jacobian = plain.jacobian(flat)
    step = plain.newton_step(jacobian, plain.field(flat))
    fixed = found.reshape(-1) & (plain.distance(step, flat) <= _LARGEST_RESIDUAL)
    shape = (*system.batch, system.width, system.width)
    return fixed.reshape(system.batch), jacobian.reshape(shape)
