"""Fit circuits: least squares by scipy, derivatives by the implicit function theorem."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import check_choice, check_number, check_positive_int
from ..circuit import Circuit
from .data import Responses, Spectra
from .objective import Objective
from .parameters import FitParameter, Vector
from .result import Fit, FitStatus
from .uncertainty import Curvature, examine

__all__ = ["fit"]

_ERRORS = ("gauss-newton", "hessian")
# A minimum, in standard errors; or, for data without noise, as a part of the misfit at the start.
_CLOSE, _EXACT = 1e-3, 1e-9
# Distance from a bound, as a part of the start's, that counts as being there.
_AT_BOUND = 1e-6


def fit(
    build: Callable[[Mapping[str, Tensor]], Circuit],
    parameters: Mapping[str, FitParameter | Tensor | float],
    data: Responses | Spectra | Sequence[Responses | Spectra],
    *,
    errors: str = "gauss-newton",
    max_evaluations: int = 200,
    tol: float = 1e-11,
) -> Fit:
    """Fit parameters of circuits to responses and spectra, by least squares.

    A trust-region method (scipy's ``least_squares``) with derivatives through the implicit steady
    state. A trial point without a steady state, or with values that no circuit has, is counted, and
    the search turns to a smaller step. The minimum is a local one, near the start. Circuits are
    asked for their stable steady state; where they have several, it may be any of these.

    Args:
        build: ``build(parameters)`` makes the circuits, in float64, from the parameters by name,
            each a float64 tensor of the shape of its start. It has to be differentiable: no
            ``float(...)`` and no ``.item()`` of them.
        parameters: What is fitted, by name: a :class:`FitParameter` with bounds, or just a start.
        data: One data set, or several that are fitted together; then each has to know its noise.
        errors: Whence the standard errors come: ``"gauss-newton"``, of the squared Jacobian, or
            ``"hessian"``, of all second derivatives, which is slower.
        max_evaluations: Points that are tried at most.
        tol: Of the steady states, as in :meth:`Circuit.steady_state`.

    Returns:
        Estimates and standard errors. The fit is said to have converged only where the Jacobian
        shows a minimum; where that Jacobian leaves a parameter open (it is singular), the fit says
        "not identified", and gives no number for it.

    Raises:
        TypeError: An argument has the wrong type, or ``build`` makes something else.
        ValueError: A value does not fit, or ``build`` raises it at the start.
    """
    check_choice("errors", errors, _ERRORS)
    limit = check_positive_int("max_evaluations", max_evaluations)
    tol = check_number("tol", tol, low=0.0, high=1e-3, open_low=True)
    sets = _data_sets(data)
    vector = Vector(parameters, sets[0].values.device)
    objective = Objective(build, vector, sets, tol)
    with torch.no_grad():
        objective.circuit(vector.start)
    first = objective.try_residual(vector.start)
    if first is None:
        return _made(objective, vector, FitStatus.BAD_START, vector.start, sets)
    end, stopped = _search(objective, vector, first, limit)
    residual = objective.try_residual(end)
    assert residual is not None
    bound = _at_bound(vector, end)
    free = ~bound
    slopes, curvature = objective.jacobian(end).cpu(), None
    held = _is_held(slopes.mT @ residual.cpu(), bound, vector, end)
    if bool(free.any()):
        jacobian = slopes[:, free]
        second = objective.hessian(end)[free][:, free].cpu() if errors == "hessian" else None
        curvature = examine(jacobian, residual.cpu(), second)
    size = _noise_size(sets, residual, int(free.sum()))
    left = 0.0 if curvature is None else curvature.left
    ended = held and (curvature is None or curvature.is_minimum)
    close = max(_EXACT * float(torch.linalg.vector_norm(first)), _CLOSE * (size or 0.0))
    status = _status(objective, ended and left <= close, stopped)
    return _made(objective, vector, status, end, sets, residual, curvature, bound, size)


def _data_sets(data: Any) -> list[Responses | Spectra]:
    sets = [data] if isinstance(data, Responses | Spectra) else data
    if not isinstance(sets, Sequence) or isinstance(sets, str) or not sets:
        raise TypeError(f"data: got {type(data).__name__}, expected Responses, Spectra or a list")
    for number, each in enumerate(sets):
        if not isinstance(each, Responses | Spectra):
            raise TypeError(
                f"data[{number}]: got {type(each).__name__}, expected Responses or Spectra"
            )
        if len(sets) > 1 and each.noise is None:
            raise ValueError(
                f"data[{number}]: got noise=None, expected its size: what several data sets weigh "
                "depends on it"
            )
    return list(sets)


def _search(objective: Objective, vector: Vector, first: Tensor, limit: int) -> tuple[Tensor, bool]:
    """The end of the search, and whether it ended for want of evaluations."""
    # Slow to import, and needed by few.
    from scipy.optimize import least_squares

    nothing = np.full(first.numel(), np.inf)

    def residual(point: np.ndarray) -> np.ndarray:
        found = objective.try_residual(torch.from_numpy(point.copy()))
        return nothing if found is None else found.cpu().numpy()

    def jacobian(point: np.ndarray) -> np.ndarray:
        return objective.jacobian(torch.from_numpy(point.copy())).cpu().numpy()

    found = least_squares(
        residual,
        vector.start.numpy(),
        jacobian,
        bounds=(vector.low.numpy(), vector.high.numpy()),
        method="trf",
        x_scale="jac",
        ftol=1e-14,
        xtol=1e-12,
        gtol=1e-14,
        max_nfev=limit,
    )
    return torch.from_numpy(found.x.copy()), found.status == 0


def _at_bound(vector: Vector, end: Tensor) -> Tensor:
    low = end - vector.low <= _AT_BOUND * (vector.start - vector.low)
    high = vector.high - end <= _AT_BOUND * (vector.high - vector.start)
    return (low & vector.low.isfinite()) | (high & vector.high.isfinite())


def _is_held(slope: Tensor, bound: Tensor, vector: Vector, end: Tensor) -> bool:
    """Whether every parameter at a bound would leave it, to make the misfit smaller."""
    lower = end - vector.low < vector.high - end
    outward = torch.where(lower, slope >= 0, slope <= 0)
    return bool(outward[bound].all())


def _noise_size(sets: Sequence[Responses | Spectra], residual: Tensor, count: int) -> float | None:
    """The noise's standard deviation, in the unit of the residual; None where it is unknown."""
    if sets[0].noise is not None:
        return 1.0
    spare = residual.numel() - count
    return float((residual.square().sum() / spare).sqrt()) if spare > 0 else None


def _status(objective: Objective, is_minimum: bool, stopped: bool) -> FitStatus:
    if is_minimum:
        return FitStatus.CONVERGED
    if stopped:
        return FitStatus.MAX_EVALUATIONS
    return FitStatus.EDGE if objective.failures else FitStatus.STALLED


def _made(
    objective: Objective,
    vector: Vector,
    status: FitStatus,
    end: Tensor,
    sets: Sequence[Responses | Spectra],
    residual: Tensor | None = None,
    curvature: Curvature | None = None,
    bound: Tensor | None = None,
    size: float | None = None,
) -> Fit:
    """The record of a fit."""
    count = end.numel()
    bound = torch.zeros(count, dtype=torch.bool) if bound is None else bound
    covariance = torch.full((count, count), torch.nan, dtype=torch.float64)
    # Nothing is known where the search found no minimum to look at.
    identified = torch.ones(count, dtype=torch.bool)
    if curvature is not None:
        place = (~bound).nonzero().squeeze(-1)
        identified[place] = curvature.identified
        if status == FitStatus.CONVERGED and size is not None:
            covariance[place[:, None], place] = size**2 * curvature.inverse
    estimates = torch.where(identified, end, torch.nan)
    with torch.no_grad():
        circuit = None if residual is None else objective.circuit(end)
    given = sets[0].noise is not None
    return Fit(
        status,
        vector.split(estimates),
        vector.split(covariance.diagonal().sqrt()),
        vector.split(identified),
        vector.split(bound),
        vector.split(end),
        covariance,
        vector.names(),
        circuit,
        sets[0].values.new_zeros(0) if residual is None else residual,
        None if given else size,
        objective.evaluations,
        len(objective.failures),
        objective.failures[-1] if objective.failures else "",
    )
