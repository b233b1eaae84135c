"""What can go wrong while a steady state is computed or differentiated."""

__all__ = ["AdjointWarning", "SteadyStateError", "SteadyStateWarning"]


class SteadyStateError(RuntimeError):
    """A circuit has no steady state that the solver could reach (``on_failure="error"``)."""


class SteadyStateWarning(RuntimeWarning):
    """Some circuits of a batch have no steady state that the solver could reach."""


class AdjointWarning(RuntimeWarning):
    """The adjoint equation of some circuits could not be solved: their gradient is left out."""
