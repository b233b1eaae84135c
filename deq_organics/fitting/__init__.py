"""Parameters of circuits from data: least squares through the implicit steady state."""

from .data import Responses, Spectra
from .fit import fit
from .parameters import FitParameter
from .result import Fit, FitStatus

__all__ = ["Fit", "FitParameter", "FitStatus", "Responses", "Spectra", "fit"]
