"""Steady states: how they are found, differentiated and recorded."""

from .record import SteadyState
from .status import Reached, Solution, Status

__all__ = ["Reached", "Solution", "Status", "SteadyState"]
