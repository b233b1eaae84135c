"""Are fixed points stable? A verdict that is proved, and the eigenvalue that leads."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .circuit import Circuit
from .layer import ORGaNICsDEQ
from .solvers.cayley import Verdict
from .solvers.spectrum import leading_eigenvalues, verdicts
from .steady_state import SteadyState

__all__ = ["StabilityReport", "check_stability"]

# A solve with a loose tolerance is to be judged, a state that is none is not.
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
    fixed_point: Tensor
    """Boolean ``(...)``: the state solves the circuit's equations."""

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
        if open_ := int(self.undecided.sum()):
            lines.append(f"  undecided, their largest real part is within rounding of 0: {open_}")
        none = int((~self.fixed_point).sum())
        if missing := total - int(known.sum()) - none:
            lines.append(f"  without steady state: {missing}")
        if none:
            lines.append(f"  not at a fixed point (relative residual above 0.002): {none}")
        return "\n".join(lines)
