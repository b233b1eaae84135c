"""Two populations, of which one neuron each stands for all, that normalize each other."""

from torch import Tensor

from ..checks import as_float_tensor, check_number
from ..circuit import Circuit

__all__ = ["two_populations"]


def two_populations(
    z: Tensor,
    *,
    semisaturation: Tensor | float = 0.2,
    cross_normalization: float = 1.0,
    recurrent_gain: float = 1.0,
    competition: float = 0.0,
    attention: Tensor | float = 1.0,
    tau_y: float = 4.0,
    tau_a: float = 4.0,
) -> Circuit:
    """Circuits of two populations, for instance of two stimuli, or of two orientations.

    Args:
        z: Their inputs, ``(..., 2)``, contrasts between 0 and 1.
        semisaturation: ``sigma``, the contrast that evokes half of the largest response.
        cross_normalization: How much each population weighs in the other's pool, at least 0; it
            weighs 1 in its own.
        recurrent_gain: Diagonal of ``Wr``: how much each excites itself.
        competition: How much each inhibits the other, at least 0: ``-competition`` beside it.
        attention: ``b / b0``, a number or ``(..., 2)``; ``b0`` is 1/2.
        tau_y: In ms.
        tau_a: In ms.

    Returns:
        The circuits. A stable steady state is promised for ``recurrent_gain=1, competition=0``,
        where ``Wr`` is the identity; for others see ``steady_state().converged``.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A shape or a value does not fit.
    """
    z = as_float_tensor("z", z)
    if z.ndim == 0 or z.shape[-1] != 2:
        raise ValueError(f"z: got shape {tuple(z.shape)}, expected (..., 2)")
    cross = check_number("cross_normalization", cross_normalization, low=0.0)
    own = check_number("recurrent_gain", recurrent_gain)
    other = check_number("competition", competition, low=0.0)
    recurrent = None
    if (own, other) != (1.0, 0.0):
        recurrent = z.new_tensor([[own, -other], [-other, own]])
    gain = 0.5 * attention
    pool = z.new_tensor([[1.0, cross], [cross, 1.0]])
    return Circuit.from_gains(z, gain, 0.5, semisaturation, recurrent, pool, tau_y, tau_a)
