"""Ready-made circuits of tuned neurons, and their stimuli, in degrees, milliseconds and hertz."""

from .memory import WorkingMemory, from_complex, real_form, to_complex, working_memory
from .sheet import Sheet, line, orientations, ring, sharpening_weight
from .stimuli import covered, drifting, surround, switched, tuning
from .two_populations import two_populations
from .units import hertz, per_millisecond

__all__ = [
    "Sheet",
    "WorkingMemory",
    "covered",
    "drifting",
    "from_complex",
    "hertz",
    "line",
    "orientations",
    "per_millisecond",
    "real_form",
    "ring",
    "sharpening_weight",
    "surround",
    "switched",
    "to_complex",
    "tuning",
    "two_populations",
    "working_memory",
]
