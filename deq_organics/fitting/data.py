"""What is fitted to: responses of neurons, and power spectra."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..checks import as_float_tensor, check_finite, check_positive
from ..circuit import Circuit
from ..errors import SteadyStateWarning
from ..response.linear_response import cross_spectrum
from ..response.spectral_density import CrossSpectrum
from ..steady_state import SteadyState

__all__ = ["NoPrediction", "Responses", "Spectra"]

Parameters = Mapping[str, Tensor]


class NoPrediction(Exception):
    """A point of the search at which the circuits have no stable steady state."""


class _Data:
    """Measured values, their noise, and the mask of those that are there."""

    def __init__(self, values: Tensor, noise: Tensor | float | None) -> None:
        as_float_tensor("values", values)
        self.values = values.detach().double()
        self.there = ~self.values.isnan()
        if not bool(self.there.any()):
            raise ValueError("values: got none, or NaN only, expected at least one measured value")
        check_finite("values", self.values[self.there])
        self.noise: Tensor | None = None
        if noise is not None:
            spread = noise if isinstance(noise, Tensor) else torch.tensor(noise)
            spread = as_float_tensor("noise", spread).detach().to(self.values)
            check_positive("noise", spread)
            try:
                self.noise = spread.expand(self.values.shape)
            except RuntimeError:
                raise ValueError(
                    f"noise: got shape {tuple(spread.shape)}, expected one that broadcasts to "
                    f"{tuple(self.values.shape)} as values"
                ) from None

    def _difference(self, predicted: Any, measured: Tensor) -> Tensor:
        """Of what is there, in units of the noise, ``(M,)``."""
        if not isinstance(predicted, Tensor) or predicted.shape != measured.shape:
            found = tuple(predicted.shape) if isinstance(predicted, Tensor) else type(predicted)
            raise TypeError(
                f"read_out: got {found} of the prediction, expected {tuple(measured.shape)} as "
                "values"
            )
        difference = (predicted - torch.where(self.there, measured, 0.0))[self.there]
        return difference if self.noise is None else difference / self.noise[self.there]


class Responses(_Data):
    """Measured responses at steady states, for instance to several contrasts.

    Args:
        values: Of any shape, NaN where nothing was measured; with the default read-out
            ``(..., n)``, as the circuits' rates.
        noise: Standard deviation of the values' noise, which broadcasts to them: a number or a
            tensor. None: equal for all, and estimated from the residuals.
        read_out: ``read_out(state, parameters)`` says what would be measured, in the shape of
            ``values``, from the :class:`SteadyState` and the fitted parameters by name. None is
            ``state.rates``.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Nothing was measured, or a value or the noise does not fit.
    """

    def __init__(
        self,
        values: Tensor,
        noise: Tensor | float | None = None,
        read_out: Callable[[SteadyState, Parameters], Tensor] | None = None,
    ) -> None:
        super().__init__(values, noise)
        self._read_out = read_out

    def residual(self, circuit: Circuit, state: SteadyState, parameters: Parameters) -> Tensor:
        """Prediction minus measurement in units of the noise, ``(M,)``."""
        predicted = state.rates if self._read_out is None else self._read_out(state, parameters)
        return self._difference(predicted, self.values)


class Spectra(_Data):
    """Measured power spectra, compared with :func:`cross_spectrum` on a logarithmic scale.

    Args:
        values: Positive power densities of any shape, NaN where nothing was measured; with the
            default read-out ``(..., F, 2n)``.
        frequency: In cycles per unit of time, ``(F,)``.
        noise_y: That of :func:`cross_spectrum`.
        noise_a: Likewise.
        relative_error: Standard deviation of the values' logarithms, which broadcasts to them: for
            a mean of ``k`` periodograms ``k**-0.5``. None: equal for all, and estimated.
        read_out: ``read_out(spectrum, parameters)`` says what would be measured, from the
            :class:`CrossSpectrum` and the fitted parameters. None is ``spectrum.power``.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Nothing was measured, or a value or the error does not fit.
    """

    def __init__(
        self,
        values: Tensor,
        frequency: Tensor,
        *,
        noise_y: Tensor | float = 1.0,
        noise_a: Tensor | float = 0.0,
        relative_error: Tensor | float | None = None,
        read_out: Callable[[CrossSpectrum, Parameters], Tensor] | None = None,
    ) -> None:
        super().__init__(values, relative_error)
        check_positive("values", self.values[self.there])
        self._logarithms = self.values.log()
        self._frequency = as_float_tensor("frequency", frequency).double()
        self._noise_y, self._noise_a = noise_y, noise_a
        self._read_out = read_out

    def residual(self, circuit: Circuit, state: SteadyState, parameters: Parameters) -> Tensor:
        """Logarithm of prediction by measurement, in units of its error, ``(M,)``."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SteadyStateWarning)
            spectrum = cross_spectrum(
                circuit,
                self._frequency,
                noise_y=self._noise_y,
                noise_a=self._noise_a,
                state=state,
            )
        read_out = self._read_out
        power = spectrum.power if read_out is None else read_out(spectrum, parameters)
        return self._difference(power.log(), self._logarithms)
