"""Circuits of any kind, the family around ORGaNICs, and networks of them."""

from .amplifier import AmplifierCircuit
from .feedback_area import FeedbackArea
from .network import Connection, Network
from .protocol import DynamicalCircuit, Linearized
from .ssn import SSN
from .steady_state import JointSteadyState, find_steady_state
from .wilson_cowan import WilsonCowan

__all__ = [
    "SSN",
    "AmplifierCircuit",
    "Connection",
    "DynamicalCircuit",
    "FeedbackArea",
    "JointSteadyState",
    "Linearized",
    "Network",
    "WilsonCowan",
    "find_steady_state",
]
