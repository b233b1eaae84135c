"""Trials of noisy circuits as a value: what can be estimated from them, and the theory's."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import equations
from ..checks import check_choice, check_number, check_positive_int
from ..circuit import Circuit
from ..response.lags import lagged_covariances
from ..response.linear_response import cross_spectrum, stationary_covariance
from ..response.noise import Noise
from ..response.noise_sources import sources_of
from ..response.spectral_density import CrossSpectrum
from ..response.trajectory import Trajectory
from ..response.working_point import working_point
from .spectra import Segments, expected_density, welch_density

__all__ = ["Trials"]

_QUANTITIES = ("rates", "y", "a")


@dataclass(frozen=True, eq=False)
class Trials:
    """Trials of a batch of circuits with noise; ``print`` it for a summary.

    Statistics are those over trials: deviations are taken from the mean over the trials at each
    time, and divided by one less than their number, so that no estimate is biased by it. A trial
    that diverged makes those of its circuit NaN.
    """

    t: Tensor
    """The times ``(T,)``."""
    y: Tensor
    """Membrane potentials of the principal neurons, ``(trials, T, ..., n)``."""
    a: Tensor
    """Membrane potentials of the inhibitory neurons, ``(trials, T, ..., n)``."""
    circuit: Circuit
    noise: tuple[Noise, ...]
    dt: float
    """The longest step."""
    reached: Tensor
    """The last time that each trial reached, ``(trials, ...)``, float64; it is NaN from there on.
    """
    driven: bool = False
    """Whether the input changed in time."""

    @property
    def rates(self) -> Tensor:
        """Firing rates of the principal neurons, ``y+ = relu(y)^m``, ``(trials, T, ..., n)``."""
        return equations.firing_rate(self.y, self.circuit.exponent)

    @property
    def finished(self) -> Tensor:
        """Which trials got to the last time, boolean ``(trials, ...)``."""
        return ~self.y[:, -1].isnan().any(-1)

    def __len__(self) -> int:
        """How many trials there are."""
        return self.y.shape[0]

    def __getitem__(self, index: int) -> Trajectory:
        """One trial as a :class:`Trajectory`."""
        settled = torch.full_like(self.reached[index], torch.nan)
        parts = (self.t, self.y[index], self.a[index], self.circuit.exponent)
        return Trajectory(*parts, self.reached[index], settled)

    def mean(self, quantity: str = "rates") -> Tensor:
        """Mean over trials, ``(T, ..., n)``, of ``"rates"``, ``"y"`` or ``"a"``."""
        return self._values(quantity).mean(0)

    def variance(self, quantity: str = "rates") -> Tensor:
        """Variance over trials, ``(T, ..., n)``, of ``"rates"``, ``"y"`` or ``"a"``."""
        self._several()
        return self._values(quantity).var(0)

    def covariance(self) -> Tensor:
        """Covariance of ``(y, a)`` over trials, averaged over the times, ``(..., 2n, 2n)``.

        For stationary trials it estimates :meth:`theory_covariance`.
        """
        rows = self._deviations()
        batch, (trials, times, _, k) = self.circuit.batch_shape, rows.shape
        flat = rows.permute(2, 0, 1, 3).reshape(-1, trials * times, k).double()
        found = flat.mT @ flat / (times * (trials - 1))
        return found.reshape(*batch, k, k).to(self.y.dtype)

    def theory_covariance(self) -> Tensor:
        """The covariance of the linear response, :func:`deq_organics.stationary_covariance`."""
        self._steady()
        return stationary_covariance(self.circuit, noise=self.noise)

    def counts(self, window: float) -> Tensor:
        """Integrals of the rates over windows, one after the other, ``(trials, windows, ..., n)``.

        Args:
            window: Their length, a multiple of the distance of the times ``t``, which is uniform.
        """
        step = self._step()
        window = check_number("window", window, low=0.0, open_low=True)
        size = round(window / step)
        if size < 1 or abs(size * step - window) > 1e-6 * window or size > len(self.t):
            raise ValueError(
                f"window: got {window:g}, expected a multiple of the distance of times, {step:g}, "
                f"of at most {step * len(self.t):g}"
            )
        number = len(self.t) // size
        rates = self.rates[:, : number * size]
        return step * rates.unflatten(1, (number, size)).sum(2)

    def fano_factor(self, window: float, gain: float = 1.0) -> Tensor:
        """Variance over mean of ``gain`` times :meth:`counts`, ``(windows, ..., n)``.

        With ``gain`` in spikes per unit of rate and time these are the expected spike counts, and
        Poisson neurons that fire at these rates have 1 more. NaN for neurons that are silent.

        Args:
            window: As in :meth:`counts`.
            gain: Positive.
        """
        self._several()
        counts = check_number("gain", gain, low=0.0, open_low=True) * self.counts(window)
        return counts.var(0) / counts.mean(0)

    def noise_correlation(self, window: float | None = None, quantity: str = "rates") -> Tensor:
        """Correlation over trials of each two neurons, ``(..., n, n)``; NaN with constant ones.

        Args:
            window: Correlates :meth:`counts`; None correlates values at the same time. Covariances
                are averaged over windows, or times.
            quantity: ``"rates"``, ``"y"`` or ``"a"``; only ``"rates"`` has windows.
        """
        self._several()
        if window is None:
            values = self._values(quantity)
        elif quantity == "rates":
            values = self.counts(window)
        else:
            raise ValueError(f"window: got one with quantity={quantity!r}, expected None")
        n = self.circuit.n
        rows = (values - values.mean(0)).double().movedim((0, 1), (-3, -2))
        rows = rows.reshape(*self.circuit.batch_shape, -1, n)
        covariance = rows.mT @ rows
        spread = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        found = covariance / spread.unsqueeze(-1) / spread.unsqueeze(-2)
        return found.clamp(-1.0, 1.0).to(self.y.dtype)

    def spectrum(
        self, segment: int | None = None, overlap: int | None = None, window: str = "hann"
    ) -> CrossSpectrum:
        """Power and cross-spectra of ``(y, a)`` by Welch's method, over segments and trials.

        As ``scipy.signal.csd(..., detrend=False)`` of the deviations from the mean over trials,
        which needs no other detrending, with the trials' number of degrees of freedom.

        Args:
            segment: Samples of a segment; None takes whole trials.
            overlap: Samples that two segments share; None is half of them.
            window: A name that ``scipy.signal.get_window`` knows.

        Returns:
            One-sided densities at the frequencies ``(F,)`` of the segments.
        """
        cut = self._segments(segment, overlap, window)
        rows, batch = self._deviations(), self.circuit.batch_shape
        found = [welch_density(rows[:, :, index], cut) for index in range(rows.shape[2])]
        trials, k = len(self), rows.shape[-1]
        density = torch.stack(found) if found else rows.new_zeros(0, 1, 1).to(torch.complex128)
        density = density.reshape(*batch, cut.frequency.numel(), k, k) * (trials / (trials - 1))
        return self._as_spectrum(density, cut)

    def theory_spectrum(
        self,
        segment: int | None = None,
        overlap: int | None = None,
        window: str = "hann",
        *,
        sampled: bool = True,
    ) -> CrossSpectrum:
        """What :meth:`spectrum` with these arguments is expected to be, by the linear response.

        Args:
            segment: As in :meth:`spectrum`.
            overlap: See there.
            window: See there.
            sampled: Whether to include what sampling and the window do: frequencies above the
                half of the sampling rate are folded down, and the window smears. Otherwise it is
                :func:`deq_organics.cross_spectrum`.
        """
        self._steady()
        cut = self._segments(segment, overlap, window)
        frequency = cut.frequency.to(self.y.device, self.y.dtype)
        if not sampled:
            return cross_spectrum(self.circuit, frequency, noise=self.noise)
        sources = sources_of(self.circuit, self.noise)
        with torch.no_grad():
            point = working_point(self.circuit, None)
            lags = lagged_covariances(self.circuit, sources, point, cut.step)
            density = expected_density(lags, cut)
            density = torch.where(point.stable[..., None, None, None], density, torch.nan)
        return self._as_spectrum(density, cut)

    def _as_spectrum(self, density: Tensor, cut: Segments) -> CrossSpectrum:
        dtype = self.y.dtype
        frequency = cut.frequency.to(self.y.device, dtype)
        return CrossSpectrum(frequency, density.to(dtype.to_complex()), "one")

    def _segments(self, segment: int | None, overlap: int | None, window: str) -> Segments:
        samples = len(self.t)
        size = samples if segment is None else check_positive_int("segment", segment)
        if not 2 <= size <= samples:
            raise ValueError(f"segment: got {size}, expected 2 to {samples} samples")
        shared = size // 2
        if overlap is not None:
            shared = int(check_number("overlap", overlap, low=0, high=size - 1))
        return Segments(samples, self._step(), size, shared, window)

    def _values(self, quantity: str) -> Tensor:
        check_choice("quantity", quantity, _QUANTITIES)
        return getattr(self, quantity)

    def _deviations(self) -> Tensor:
        """``(trials, T, B, 2n)`` from the mean over trials."""
        self._several()
        state = torch.cat([self.y, self.a], -1)
        state = state.reshape(*state.shape[:2], -1, state.shape[-1])
        return state - state.mean(0)

    def _several(self) -> None:
        if len(self) < 2:
            raise ValueError("trials: got 1, expected at least 2 for statistics over trials")

    def _steady(self) -> None:
        if self.driven:
            raise ValueError(
                "input_drive, inhibitory_drive: got input that changes in time, which has no "
                "stationary theory"
            )

    def _step(self) -> float:
        """The distance of the times, which has to be uniform."""
        steps = self.t.double().diff()
        step = float((self.t[-1] - self.t[0]).double() / (len(self.t) - 1))
        slack = 16 * torch.finfo(self.t.dtype).eps * float(self.t.abs().max())
        if float((steps - step).abs().max()) > max(slack, 1e-9 * step):
            raise ValueError(
                f"t: got steps from {float(steps.min()):g} to {float(steps.max()):g}, expected "
                "uniform times for windows and spectra"
            )
        return step

    def __str__(self) -> str:
        finished = self.finished
        circuits = self.circuit.batch_shape.numel()
        known = self.rates[finished.unsqueeze(1).expand(self.y.shape[:-1])]
        lines = [
            f"Trials: {len(self)} of {circuits} circuits, n = {self.circuit.n}, at {len(self.t)} "
            f"times from {float(self.t[0]):.6g} to {float(self.t[-1]):.6g}, in steps of at most "
            f"{self.dt:.4g}"
        ]
        if known.numel():
            lines.append(
                f"  rates: mean {float(known.mean()):.4g}, largest {float(known.max()):.4g}"
            )
        if missing := int((~finished).sum()):
            first = float(self.reached[~finished].min())
            lines.append(f"  diverged, NaN from then on: {missing}, the first at t = {first:.6g}")
        return "\n".join(lines)

    __repr__ = __str__
