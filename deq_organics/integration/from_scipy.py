"""scipy's integrators, one sample at a time: for comparison, and without a derivative."""

import math
import warnings

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .method import VectorField
from .trajectory import Outcome, StepControl, Trajectory, has_blown_up

__all__ = ["SCIPY_SOLVERS", "integrate_by_scipy"]

SCIPY_SOLVERS = ("LSODA", "Radau", "BDF", "DOP853", "RK45", "RK23")


@torch.no_grad()
def integrate_by_scipy(
    field: VectorField, start: Tensor, grid: Tensor, solver: str, control: StepControl
) -> Trajectory:
    """As :func:`.trajectory.integrate`, by the solvers of ``scipy.integrate``."""
    size, width = start.shape
    states = start.new_full((grid.numel(), size, width), math.nan)
    outcome = torch.full((size,), Outcome.FINISHED, device=start.device)
    reached = torch.empty(size, dtype=torch.float64, device=start.device)
    times = grid.double().cpu().numpy()
    for sample in range(size):
        index = torch.tensor([sample], device=start.device)
        part, limits = field.select(index), control.take(index)
        found, ended, time = _follow(part, start[index], times, solver, limits)
        states[:, sample] = torch.as_tensor(found, device=start.device).to(start.dtype)
        outcome[sample], reached[sample] = ended, time
    return Trajectory(states, outcome, reached)


def _follow(
    field: VectorField,
    start: Tensor,
    times: npt.NDArray[np.float64],
    solver: str,
    control: StepControl,
) -> tuple[npt.NDArray[np.float64], Outcome, float]:
    """One sample's states ``(T, k)``, how its integration ended, and when."""
    from scipy import integrate

    def flow(time: float, state: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        now = torch.tensor([time], dtype=torch.float64, device=start.device)
        at = torch.as_tensor(state, device=start.device).to(start.dtype).unsqueeze(0)
        return field(now, at)[0].double().cpu().numpy()

    states = np.full((len(times), start.shape[-1]), math.nan)
    states[0], seen = start[0].cpu().numpy(), 1
    reached, known = float(times[0]), start
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # What fails is reported by the caller.
        stepper = getattr(integrate, solver)(
            flow,
            times[0],
            states[0].copy(),
            times[-1],
            max_step=control.max_step,
            rtol=control.rtol,
            atol=(control.atol * control.scale)[0].double().cpu().numpy(),
        )
        for _ in range(control.max_steps):
            message = stepper.step()
            if message or stepper.t <= reached or not np.isfinite(stepper.y).all():
                outcome = (
                    Outcome.DIVERGED if _is_lost(stepper.y, known, control) else Outcome.STALLED
                )
                return states, outcome, reached
            ahead = int(np.searchsorted(times, stepper.t, side="right"))
            if ahead > seen:
                states[seen:ahead] = stepper.dense_output()(times[seen:ahead]).T
            seen, reached = ahead, stepper.t
            known = torch.as_tensor(stepper.y, device=start.device).unsqueeze(0)
            if stepper.status == "finished":
                return states, Outcome.FINISHED, reached
    return states, Outcome.TOO_MANY_STEPS, reached


def _is_lost(trial: npt.NDArray[np.float64], known: Tensor, control: StepControl) -> bool:
    return not np.isfinite(trial).all() or bool(has_blown_up(known, control))
