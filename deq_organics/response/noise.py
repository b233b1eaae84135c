"""Noise as a value: where it enters a circuit, how strong it is, and how it is correlated."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..checks import check_bool, check_choice, check_number

__all__ = ["PLACES", "Noise", "as_noises"]

Values = Tensor | npt.NDArray[np.floating]
PLACES = ("y", "a", "input_drive", "state")
_ARRAYS = (Tensor, np.ndarray)


@dataclass(frozen=True, eq=False)
class Noise:
    """Gaussian noise of mean zero in the equations of circuits of ``n`` neurons of each type.

    With ``k`` independent sources ``xi`` the noise ``D(strength) L xi`` is added where ``on`` says.
    A sequence of noises is their sum, and they are independent of each other: so noise that is
    partly shared is ``[Noise(0.03, shared=True), Noise(0.01)]``.

    ========================================  =======================================
    sources                                   ``L``
    ========================================  =======================================
    private (if nothing else is given)        the identity: one source for each neuron
    ``shared=True``                           a column of ones: one source for all
    ``factor=L``                              ``L``
    ``covariance=Q``                          its Cholesky factor, ``L L^T = Q``
    ========================================  =======================================

    In time a source is one of these; its two-sided power spectral density follows:

    - White (the default), a density of 1: ``strength`` is a standard deviation per square root of
      time.
    - Ornstein-Uhlenbeck noise with the correlation time ``tau`` and the variance 1, of density
      ``2 tau / (1 + (2 pi f tau)^2)``: ``strength`` is a standard deviation.
    - Of a ``density`` of your own, for the linear response only.

    Leading dimensions ``(...)`` of tensors are those of the circuits, never trials, frequencies, or
    noise of several strengths. Tensors and numpy arrays are both taken.

    Raises:
        TypeError: An argument is not of its type.
        ValueError: A value does not fit, or two arguments exclude each other; the message names
            them. Shapes are checked where the noise meets a circuit.
    """

    strength: Values | float = 1.0
    """At least 0: a number, ``(n,)`` or ``(..., n)``; ``2n`` in place of ``n`` for ``on="state"``.
    """
    on: str = "y"
    """Where it is added: ``"y"``, to ``dy/dt``; ``"a"``, to ``da/dt``; ``"state"``, to both;
    ``"input_drive"``, to ``d = b z``, so that ``dy/dt`` has it over ``tau_y``. Noise in ``z`` of
    strength ``s`` is noise in the drive of strength ``b s``; noise in an input ``x`` with
    ``z = Wzx x`` has the factor ``Wzx``."""
    _: KW_ONLY
    tau: Values | float | None = None
    """Correlation time of Ornstein-Uhlenbeck noise, positive, in the unit of the circuit's time
    constants: a number, ``(k,)`` or ``(..., k)``. None is white noise."""
    density: Callable[[Tensor], Tensor] | Values | None = None
    """Two-sided power spectral density of each source, at least 0, which ``strength`` squared
    multiplies: a function of frequencies ``(F,)``, not negative, in cycles per unit of time, that
    returns ``(F,)``, ``(F, k)`` or ``(..., F, k)``; or such a tensor, with the values at the
    frequencies of the spectrum."""
    shared: bool = False
    """Whether one source drives all neurons."""
    factor: Values | None = None
    """``L``, ``(n, k)`` or ``(..., n, k)``; ``(2n, k)`` or ``(..., 2n, k)`` for ``on="state"``."""
    covariance: Values | None = None
    """``Q``, ``(n, n)`` or ``(..., n, n)``, symmetric and positive semidefinite; ``(2n, 2n)`` for
    ``on="state"``. To be differentiated it has to be positive definite."""
    multiplicative: bool = False
    """Whether the noise that a neuron receives is multiplied by the square root of its firing rate,
    so that its variance is proportional to the rate: ``y+ + y-`` of the pair of principal neurons
    (``y+`` in the rectified model), ``a+`` of an inhibitory neuron. In time the rate is that at the
    beginning of each step (Ito); in the linear response that of the steady state."""

    def __post_init__(self) -> None:
        check_choice("on", self.on, PLACES)
        check_bool("shared", self.shared)
        check_bool("multiplicative", self.multiplicative)
        if not isinstance(self.strength, _ARRAYS):
            object.__setattr__(self, "strength", check_number("strength", self.strength, low=0.0))
        if self.tau is not None and not isinstance(self.tau, _ARRAYS):
            tau = check_number("tau", self.tau, low=0.0, open_low=True)
            object.__setattr__(self, "tau", tau)
        known = self.density is None or isinstance(self.density, _ARRAYS)
        if not (known or callable(self.density)):
            raise TypeError(
                f"density: got {type(self.density).__name__}, expected a function or a tensor"
            )
        if self.tau is not None and self.density is not None:
            raise ValueError("density: got one beside tau, expected either of them")
        given = [name for name in ("shared", "factor", "covariance") if self._has(name)]
        if len(given) > 1:
            raise ValueError(f"{given[1]}: got it beside {given[0]}, expected either of them")

    def _has(self, name: str) -> bool:
        value = getattr(self, name)
        return value is not None and value is not False


def as_noises(noise: Any) -> tuple[Noise, ...]:
    """The argument ``noise``, one or several of them."""
    if isinstance(noise, Noise):
        return (noise,)
    if isinstance(noise, Sequence) and not isinstance(noise, str):
        for index, part in enumerate(noise):
            if not isinstance(part, Noise):
                raise TypeError(f"noise[{index}]: got {type(part).__name__}, expected a Noise")
        if not noise:
            raise ValueError("noise: got none, expected a Noise or several")
        return tuple(noise)
    raise TypeError(f"noise: got {type(noise).__name__}, expected a Noise or several")
