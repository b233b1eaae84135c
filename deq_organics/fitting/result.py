"""What a fit found, and how sure it is."""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from ..circuit import Circuit

__all__ = ["Fit", "FitStatus"]


class FitStatus(IntEnum):
    """How a fit ended; ``message`` says it in words."""

    CONVERGED = 0
    MAX_EVALUATIONS = 1
    EDGE = 2
    STALLED = 3
    BAD_START = 4

    @property
    def message(self) -> str:
        return _MESSAGES[self]


_MESSAGES = {
    FitStatus.CONVERGED: "converged: a minimum, within a thousandth of a standard error",
    FitStatus.MAX_EVALUATIONS: "the search did not end within max_evaluations",
    FitStatus.EDGE: "the search ended, not at a minimum, beside points without a steady state",
    FitStatus.STALLED: "the search ended, and not at a minimum",
    FitStatus.BAD_START: "there is no steady state at the start",
}


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """Estimates and their standard errors; ``print`` it for a table."""

    status: FitStatus
    """Why the search ended; only with CONVERGED are there standard errors."""
    estimates: dict[str, Tensor]
    """Each parameter by name; NaN where the data do not identify it."""
    standard_errors: dict[str, Tensor]
    """Of the estimates; NaN where the fit did not converge, and for parameters that are not
    identified or stand at a bound."""
    identified: dict[str, Tensor]
    """Boolean: whether the data determine the parameter, as far as derivatives at ``point``
    tell."""
    at_bound: dict[str, Tensor]
    """Boolean: whether the search ended at a bound of the parameter."""
    point: dict[str, Tensor]
    """Where the search ended, also for parameters that are not identified."""
    covariance: Tensor
    """Of all entries of the estimates in their order, ``(P, P)``; NaN as the standard errors."""
    names: list[str]
    """Of the rows of ``covariance``."""
    circuit: Circuit | None
    """The circuits at ``point``, without gradients; None where there is no steady state."""
    residual: Tensor
    """Prediction minus data in units of the noise, of all values that were measured, ``(M,)``."""
    noise: float | None
    """Estimated standard deviation of the data's noise; None where it was given, or where there are
    no more values than parameters."""
    evaluations: int
    """Points at which the data were predicted."""
    failed_trials: int
    """How many of these had no steady state, or were no circuit."""
    last_failure: str
    """What was wrong with the last one of these; empty if none was."""

    @property
    def converged(self) -> bool:
        """Whether the search ended at a minimum."""
        return self.status == FitStatus.CONVERGED

    def __str__(self) -> str:
        lines = [f"Fit of {len(self.names)} parameters to {self.residual.numel()} values"]
        lines.append(f"  {self.status.message}")
        rows = zip(
            self.names,
            *(_flat(part) for part in (self.point, self.standard_errors)),
            *(_flat(part) for part in (self.identified, self.at_bound)),
            strict=True,
        )
        width = max(len(name) for name in self.names)
        for name, value, error, identified, bound in rows:
            if not identified:
                told = "not identified by the data"
            elif bound:
                told = f"{float(value):.6g}, at its bound"
            elif error.isnan():
                told = f"{float(value):.6g}, standard error unknown"
            else:
                told = f"{float(value):.6g} +- {float(error):.2g}"
            lines.append(f"  {name.ljust(width)}  {told}")
        if self.noise is not None:
            lines.append(f"  estimated noise: {self.noise:.4g}")
        lines.append(f"  {self.evaluations} points tried, {self.failed_trials} of them failed")
        if self.last_failure:
            lines.append(f"  the last failure: {self.last_failure}")
        return "\n".join(lines)

    __repr__ = __str__


def _flat(parts: dict[str, Tensor]) -> Tensor:
    return torch.cat([part.detach().cpu().flatten() for part in parts.values()])
