"""Integrators of ordinary differential equations in which each sample controls its own error.

A method is data and one pure step (:mod:`.explicit`, :mod:`.rosenbrock`); the loop that steps a
batch, chooses step sizes and samples the solution is in :mod:`.trajectory`.
"""

from .explicit import EXPLICIT_METHODS
from .method import Method, Step, VectorField, is_autonomous
from .pieces import Pieces
from .rosenbrock import RODAS5P
from .trajectory import Outcome, Run, StepControl, integrate

__all__ = [
    "METHODS",
    "Method",
    "Outcome",
    "Pieces",
    "Run",
    "Step",
    "StepControl",
    "VectorField",
    "integrate",
    "is_autonomous",
]

METHODS: dict[str, Method] = {**EXPLICIT_METHODS, "rodas5p": RODAS5P}
