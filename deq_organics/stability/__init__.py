"""Proved verdicts on the stability of fixed points, and the leading eigenvalues of Jacobians.

The solvers ask these, so nothing here knows of solvers, circuits or records.
"""

from .cayley import Verdict
from .spectrum import is_stable, leading_eigenvalues, verdicts

__all__ = ["Verdict", "is_stable", "leading_eigenvalues", "verdicts"]
