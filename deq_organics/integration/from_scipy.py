"""scipy's integrators, one sample at a time: for comparison, and without a derivative."""

import math
import warnings

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..checks import refuse_transforms
from .method import VectorField
from .pieces import Pieces
from .trajectory import Outcome, Run, StepControl, has_blown_up

__all__ = ["SCIPY_SOLVERS", "integrate_by_scipy"]

SCIPY_SOLVERS = ("LSODA", "Radau", "BDF", "DOP853", "RK45", "RK23")


def integrate_by_scipy(
    field: VectorField,
    start: Tensor,
    grid: Tensor,
    solver: str,
    control: StepControl,
    pieces: Pieces,
) -> Run:
    """As :func:`.trajectory.integrate`, by the solvers of ``scipy.integrate``.

    Raises:
        RuntimeError: A derivative is asked for, by any of these or by what the field closes over.
    """
    _refuse_derivatives(start, grid, pieces.edges)
    size, width = start.shape
    states = start.new_full((grid.numel(), size, width), math.nan)
    outcome = torch.full((size,), Outcome.FINISHED, device=start.device)
    reached = torch.empty(size, dtype=torch.float64, device=start.device)
    times = grid.double().cpu().numpy()
    for sample in range(size):
        index = torch.tensor([sample], device=start.device)
        part, limits, own = field.select(index), control.take(index), pieces.take(index)
        found, ended, time = _follow(part, start[index], times, solver, limits, own)
        states[:, sample] = torch.as_tensor(found, device=start.device).to(start.dtype)
        outcome[sample], reached[sample] = ended, time
    return Run(states, outcome, reached, torch.full_like(reached, math.nan), states[-1])


def _follow(
    field: VectorField,
    start: Tensor,
    times: npt.NDArray[np.float64],
    solver: str,
    control: StepControl,
    pieces: Pieces,
) -> tuple[npt.NDArray[np.float64], Outcome, float]:
    """One sample's states ``(T, k)``, how its integration ended, and when."""
    from scipy import integrate

    def flow(time: float, state: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        now = torch.tensor([time], dtype=torch.float64, device=start.device)
        at = torch.as_tensor(state, device=start.device).to(start.dtype).unsqueeze(0)
        slope = inside(now, at)
        # Which parameters the field closes over may depend on the time.
        _refuse_derivatives(slope)
        return slope[0].double().cpu().numpy()

    states = np.full((len(times), start.shape[-1]), math.nan)
    states[0], seen = start[0].cpu().numpy(), 1
    reached, known, state = float(times[0]), start, states[0].copy()
    piece = pieces.at(torch.tensor([reached], dtype=torch.float64, device=start.device))
    steps = 0
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # What fails is reported by the caller.
        while reached < times[-1]:
            inside = pieces.confine(field, piece)
            stepper = getattr(integrate, solver)(
                flow,
                reached,
                state,
                min(float(times[-1]), float(pieces.end(piece))),
                max_step=control.max_step,
                rtol=control.rtol,
                atol=(control.atol * control.scale)[0].double().cpu().numpy(),
            )
            while stepper.status == "running":
                if steps == control.max_steps:
                    return states, Outcome.TOO_MANY_STEPS, reached
                steps += 1
                message = stepper.step()
                if message or stepper.t <= reached or not np.isfinite(stepper.y).all():
                    lost = _is_lost(stepper.y, known, control)
                    return states, Outcome.DIVERGED if lost else Outcome.STALLED, reached
                ahead = int(np.searchsorted(times, stepper.t, side="right"))
                if ahead > seen:
                    states[seen:ahead] = stepper.dense_output()(times[seen:ahead]).T
                seen, reached, state = ahead, float(stepper.t), stepper.y
                known = torch.as_tensor(state, device=start.device).unsqueeze(0)
            piece = piece + 1
    return states, Outcome.FINISHED, reached


def _refuse_derivatives(*tensors: Tensor) -> None:
    reason = refuse_transforms(tensors)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        reason = "derivatives"
    if reason:
        raise RuntimeError(
            f"method: got 'scipy_solver', which does not support {reason}, and they are asked for; "
            "use 'rodas5p' (for stiff circuits) or 'dopri5', or torch.no_grad()"
        )


def _is_lost(trial: npt.NDArray[np.float64], known: Tensor, control: StepControl) -> bool:
    return not np.isfinite(trial).all() or bool(has_blown_up(known, control))
