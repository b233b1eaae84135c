"""ORGaNICs: recurrent circuits that compute divisive normalization, for static inputs.

Equations and theorems: Rawat, Heeger, Martiniani, "Unconditional stability of a recurrent neural
circuit implementing divisive normalization", NeurIPS 2024.
"""

from ._version import __version__
from .circuit import Circuit
from .circuits import (
    SSN,
    AmplifierCircuit,
    Connection,
    DynamicalCircuit,
    FeedbackArea,
    JointSteadyState,
    Linearized,
    Network,
    WilsonCowan,
    find_steady_state,
)
from .errors import (
    AdjointWarning,
    SimulationError,
    SimulationWarning,
    SteadyStateError,
    SteadyStateWarning,
)
from .fitting import Fit, FitParameter, FitStatus, Responses, Spectra, fit
from .layer import ORGaNICsDEQ
from .random_circuits import draw_circuits, scale_to_singular_value
from .response.any_circuit import JointSpectrum, JointTrajectory
from .response.gains import DynamicGain, InputGains
from .response.linear_response import cross_spectrum, stationary_covariance, transfer_function
from .response.noise import Noise
from .response.peaks import Peak
from .response.simulation import simulate
from .response.spectral_density import CrossSpectrum
from .response.subspace import CommunicationSubspace, communication_subspace
from .response.trajectory import Trajectory
from .stability_report import StabilityReport, check_stability
from .stacking import stack
from .states.continuation import continuation
from .states.diagram import BifurcationPoint, Branch, Continuation, CyclesAlong
from .states.fate import Fate, Settled, settle
from .states.multiplicity import FixedPoints, fixed_points
from .steady_state import Reached, Status, SteadyState
from .theory.energy import energy, energy_form
from .theory.normal_modes import NormalModes, normal_modes
from .theory.oscillators import (
    Certificate,
    Oscillators,
    coupled_oscillators,
    m_matrix_certificate,
    oscillator_eigenvalues,
)
from .theory.two_dimensional import FixedPoints2D, critical_drive_2d, fixed_points_2d
from .trials.record import Trials
from .trials.simulation import simulate_noise

__all__ = [
    "SSN",
    "AdjointWarning",
    "AmplifierCircuit",
    "BifurcationPoint",
    "Branch",
    "Certificate",
    "Circuit",
    "CommunicationSubspace",
    "Connection",
    "Continuation",
    "CrossSpectrum",
    "CyclesAlong",
    "DynamicGain",
    "DynamicalCircuit",
    "Fate",
    "FeedbackArea",
    "Fit",
    "FitParameter",
    "FitStatus",
    "FixedPoints",
    "FixedPoints2D",
    "InputGains",
    "JointSpectrum",
    "JointSteadyState",
    "JointTrajectory",
    "Linearized",
    "Network",
    "Noise",
    "NormalModes",
    "ORGaNICsDEQ",
    "Oscillators",
    "Peak",
    "Reached",
    "Responses",
    "Settled",
    "SimulationError",
    "SimulationWarning",
    "Spectra",
    "StabilityReport",
    "Status",
    "SteadyState",
    "SteadyStateError",
    "SteadyStateWarning",
    "Trajectory",
    "Trials",
    "WilsonCowan",
    "__version__",
    "check_stability",
    "communication_subspace",
    "continuation",
    "coupled_oscillators",
    "critical_drive_2d",
    "cross_spectrum",
    "draw_circuits",
    "energy",
    "energy_form",
    "find_steady_state",
    "fit",
    "fixed_points",
    "fixed_points_2d",
    "m_matrix_certificate",
    "normal_modes",
    "oscillator_eigenvalues",
    "scale_to_singular_value",
    "settle",
    "simulate",
    "simulate_noise",
    "stack",
    "stationary_covariance",
    "transfer_function",
]
