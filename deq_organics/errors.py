"""What can go wrong while a steady state or a trajectory is computed or differentiated."""

__all__ = [
    "AdjointWarning",
    "SimulationError",
    "SimulationWarning",
    "SteadyStateError",
    "SteadyStateWarning",
]


class SteadyStateError(RuntimeError):
    """A circuit has no steady state that the solver could reach (``on_failure="error"``)."""


class SteadyStateWarning(RuntimeWarning):
    """Some circuits of a batch have no steady state that the solver could reach."""


class AdjointWarning(RuntimeWarning):
    """The adjoint equation of some circuits could not be solved: their gradient is left out."""


class SimulationError(RuntimeError):
    """A circuit's trajectory does not get to the end (``on_failure="error"``)."""


class SimulationWarning(RuntimeWarning):
    """Trajectories of some circuits do not get to the end: they diverge, or need other options."""
