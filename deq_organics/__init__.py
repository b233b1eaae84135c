"""ORGaNICs: recurrent circuits that compute divisive normalization, for static inputs.

Equations and theorems: Rawat, Heeger, Martiniani, "Unconditional stability of a recurrent neural
circuit implementing divisive normalization", NeurIPS 2024.
"""

from ._version import __version__
from .circuit import Circuit
from .energy import energy, energy_form
from .errors import (
    AdjointWarning,
    SimulationError,
    SimulationWarning,
    SteadyStateError,
    SteadyStateWarning,
)
from .layer import ORGaNICsDEQ
from .linear_response import cross_spectrum, stationary_covariance, transfer_function
from .normal_modes import NormalModes, normal_modes
from .oscillators import (
    Certificate,
    Oscillators,
    coupled_oscillators,
    m_matrix_certificate,
    oscillator_eigenvalues,
)
from .random_circuits import draw_circuits, scale_to_singular_value
from .simulation import simulate
from .solvers import Reached, Status
from .spectral_density import CrossSpectrum
from .stability import StabilityReport, check_stability
from .steady_state import SteadyState
from .two_dimensional import FixedPoints2D, critical_drive_2d, fixed_points_2d

__all__ = [
    "AdjointWarning",
    "Certificate",
    "Circuit",
    "CrossSpectrum",
    "FixedPoints2D",
    "NormalModes",
    "ORGaNICsDEQ",
    "Oscillators",
    "Reached",
    "SimulationError",
    "SimulationWarning",
    "StabilityReport",
    "Status",
    "SteadyState",
    "SteadyStateError",
    "SteadyStateWarning",
    "__version__",
    "check_stability",
    "coupled_oscillators",
    "critical_drive_2d",
    "cross_spectrum",
    "draw_circuits",
    "energy",
    "energy_form",
    "fixed_points_2d",
    "m_matrix_certificate",
    "normal_modes",
    "oscillator_eigenvalues",
    "scale_to_singular_value",
    "simulate",
    "stationary_covariance",
    "transfer_function",
]
