"""ORGaNICs: recurrent circuits that compute divisive normalization, for static inputs.

Equations and theorems: Rawat, Heeger, Martiniani, "Unconditional stability of a recurrent neural
circuit implementing divisive normalization", NeurIPS 2024.
"""

from ._version import __version__
from .circuit import Circuit
from .errors import AdjointWarning, SteadyStateError, SteadyStateWarning
from .layer import ORGaNICsDEQ
from .linear_response import cross_spectrum, stationary_covariance, transfer_function
from .simulation import simulate
from .solvers import Status
from .spectral_density import CrossSpectrum
from .stability import StabilityReport, check_stability, m_matrix_certificate
from .steady_state import SteadyState

__all__ = [
    "AdjointWarning",
    "Circuit",
    "CrossSpectrum",
    "ORGaNICsDEQ",
    "StabilityReport",
    "Status",
    "SteadyState",
    "SteadyStateError",
    "SteadyStateWarning",
    "__version__",
    "check_stability",
    "cross_spectrum",
    "m_matrix_certificate",
    "simulate",
    "stationary_covariance",
    "transfer_function",
]
