"""The phenomena that divisive normalization explains, measured in circuits of tuned neurons.

Each function shows stimuli to the circuits of a sheet and returns what its middle neuron does,
beside what Eq. 2 says that it does. Contrasts are between 0 and 1, responses are firing rates `y+`
in units of the largest response to a full field of the preferred orientation.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deq_organics import Circuit, SteadyState, simulate
from deq_organics.populations import Sheet, line, ring, sharpening_weight

# In quarters of an octave.
CONTRASTS = 2 ** (torch.arange(-26, 1, dtype=torch.float64) / 4)
FINE_CONTRASTS = torch.logspace(-2, 0, 201, dtype=torch.float64)
# Both ends of the circle of orientations, to draw it.
ORIENTATIONS = torch.linspace(-90, 90, 37, dtype=torch.float64)
FINE_ORIENTATIONS = torch.linspace(-90, 90, 181, dtype=torch.float64)
RADII = torch.cat([torch.arange(1.0, 10).double() / 5, torch.arange(4.0, 13).double() / 2])
FINE_RADII = torch.linspace(0.05, 6, 120, dtype=torch.float64)
TIMES = torch.linspace(0, 200, 801, dtype=torch.float64)

TEST, MASK = 0.125, 0.5
# Of the drive; the response, the square of it, falls to half at 36 degrees, else at 22.
BROAD_TUNING = 0.5
ORTHOGONAL = 90.0
# Radii of the stimulus and widths of the attention field, in degrees.
SMALL, LARGE = 1.0, 6.0
WIDE, NARROW = 8.0, 0.5
TOLERANCE = 1e-10


@dataclass(frozen=True, eq=False)
class Curve:
    """The response of one neuron as a function of something that changes.

    Attributes:
        label: for a legend; none if empty.
        x: what changes, `(N,)`.
        y: the responses at the circuits' steady states, `(N,)`; over time, on the way there.
        circuit: the circuits.
        state: their steady states.
        fine_x: where Eq. 2 was evaluated, `(M,)`; None where it does not hold.
        fine_y: the responses that it gives, `(M,)`.
        discrepancy: the largest difference between Eq. 2 and the steady states, of all neurons.
    """

    label: str
    x: Tensor
    y: Tensor
    circuit: Circuit
    state: SteadyState
    fine_x: Tensor | None = None
    fine_y: Tensor | None = None
    discrepancy: float = 0.0

    def relative_to(self, response: float) -> "Curve":
        """The same in another unit."""
        fine_y = None if self.fine_y is None else self.fine_y / response
        return dataclasses.replace(self, y=self.y / response, fine_y=fine_y)


@dataclass(frozen=True, eq=False)
class Phenomenon:
    """What was seen.

    Attributes:
        name: the phenomenon's.
        curves: what to draw.
        findings: what was measured on them, by a name that says the unit.
    """

    name: str
    curves: Sequence[Curve]
    findings: Mapping[str, float]

    def __str__(self) -> str:
        return "\n".join(
            [self.name, *(f"  {name}: {value:.3g}" for name, value in self.findings.items())]
        )


class HyperbolicRatio(NamedTuple):
    """`R = r_max C^2 / (C^2 + c50^2)`."""

    r_max: float
    c50: float


def contrast_response(semisaturation: float) -> Phenomenon:
    """A neuron's responses to gratings of its preferred orientation and of others."""
    sheet = ring(semisaturation)
    offsets = (0, 15, 30, 45)
    curves = [
        _curve(
            f"{offset}°" if offset else "preferred",
            sheet,
            lambda contrast, offset=offset: sheet.grating(contrast, offset),
            CONTRASTS,
            FINE_CONTRASTS,
        )
        for offset in offsets
    ]
    fits = [fit_hyperbolic_ratio(curve.x, curve.y) for curve in curves]
    findings = {"c50, preferred orientation (%)": 100 * fits[0].c50}
    for offset, fit in zip(offsets, fits, strict=True):
        findings[f"R_max, {offset} degrees off"] = fit.r_max
    return Phenomenon("contrast response", curves, findings)


def orientation_tuning(semisaturation: float) -> Phenomenon:
    """A neuron's responses to gratings of all orientations, at several contrasts."""
    sheet = ring(semisaturation)
    curves = [
        _curve(
            f"{100 * contrast:.3g} %",
            sheet,
            lambda angle, contrast=contrast: sheet.grating(contrast, angle),
            ORIENTATIONS,
            FINE_ORIENTATIONS,
        )
        for contrast in (1.0, 0.5, 0.2, 0.1)
    ]
    findings = {f"half-width at {c.label} contrast (degrees)": half_width(c) for c in curves}
    return Phenomenon("orientation tuning", curves, findings)


def cross_orientation_suppression(semisaturation: float) -> Phenomenon:
    """Responses to a preferred grating under an orthogonal one, whose contrast changes."""
    sheet = ring(semisaturation)
    curves = [
        _curve(
            f"{100 * test:.3g} %" if test else "mask alone",
            sheet,
            lambda mask, test=test: sheet.grating(test) + sheet.grating(mask, ORTHOGONAL),
            CONTRASTS,
            FINE_CONTRASTS,
        )
        for test in (0.5, 0.25, TEST, 0.0)
    ]
    masked, alone = (float(curve.y[curve.x == MASK]) for curve in curves[2:])
    unmasked = float(sheet.circuit(sheet.grating(TEST)).steady_state().rates[sheet.middle])
    findings = {
        f"response to the test ({100 * TEST:.3g} %)": unmasked,
        f"response to test and mask ({100 * MASK:.3g} %)": masked,
        f"response to the mask alone ({100 * MASK:.3g} %)": alone,
        "suppression index": 1 - masked / unmasked,
    }
    return Phenomenon("cross-orientation suppression", curves, findings)


def masked_contrast_response(semisaturation: float) -> Phenomenon:
    """The same with the contrast of the preferred grating changing: the curve shifts right."""
    sheet = ring(semisaturation)
    masks = (0.0, TEST, 0.25, MASK)
    curves = [
        _curve(
            f"{100 * mask:.3g} %" if mask else "no mask",
            sheet,
            lambda test, mask=mask: sheet.grating(test) + sheet.grating(mask, ORTHOGONAL),
            CONTRASTS,
            FINE_CONTRASTS,
        )
        for mask in masks
    ]
    half = fit_hyperbolic_ratio(curves[0].x, curves[0].y).r_max / 2
    findings = {
        f"contrast for half of R_max, mask of {100 * mask:.3g} % (%)": 100
        * math.exp(crossing(curve.x.log(), curve.y, half))
        for mask, curve in zip(masks, curves, strict=True)
    }
    return Phenomenon("shift by a mask", curves, findings)


def surround_suppression(semisaturation: float) -> Phenomenon:
    """Responses, in units of the largest, to gratings that grow into the surround."""
    sheet = line(semisaturation)
    curves = [
        _curve(
            f"{100 * contrast:.3g} %",
            sheet,
            lambda radius, contrast=contrast: sheet.grating(contrast, 0.0, radius),
            RADII,
            FINE_RADII,
        )
        for contrast in (0.5, 0.1)
    ]
    findings = {}
    for curve in curves:
        peak = int(curve.y.argmax())
        index = 1 - float(curve.y[-1] / curve.y[peak])
        findings[f"peak radius at {curve.label} contrast (degrees)"] = float(curve.x[peak])
        findings[f"suppression index at {curve.label} contrast"] = index
    relative = [curve.relative_to(float(curve.y.max())) for curve in curves]
    return Phenomenon("surround suppression", relative, findings)


def attentional_gain(semisaturation: float, gain: float) -> Phenomenon:
    """Contrast responses with and without attention to the neuron's position, in two regimes.

    Reynolds and Heeger (Neuron, 2009): an attention field much wider than a small stimulus
    multiplies the drive and its normalization alike, a gain of contrast; one much narrower than a
    large stimulus leaves most of the normalization as it is, a gain of response. Responses are in
    units of R_max without attention.
    """
    sheet = line(semisaturation)
    curves: list[Curve] = []
    findings: dict[str, float] = {}
    for regime, radius, width in (
        ("contrast gain: wide field", SMALL, WIDE),
        ("response gain: narrow field", LARGE, NARROW),
    ):
        attended, unattended = (
            _curve(
                label,
                sheet,
                lambda contrast, radius=radius: sheet.grating(contrast, 0.0, radius),
                CONTRASTS[::2],
                FINE_CONTRASTS,
                attention,
            )
            for label, attention in ((regime, sheet.attention(gain, width)), ("", 1.0))
        )
        high, low = (fit_hyperbolic_ratio(curve.x, curve.y) for curve in (attended, unattended))
        curves += [curve.relative_to(low.r_max) for curve in (attended, unattended)]
        findings[f"{regime}, c50 without attention (%)"] = 100 * low.c50
        findings[f"{regime}, c50 attended / unattended"] = high.c50 / low.c50
        findings[f"{regime}, R_max attended / unattended"] = high.r_max / low.r_max
    return Phenomenon("attentional gain", curves, findings)


def recurrent_sharpening(semisaturation: float) -> Phenomenon:
    """The tuning of neurons whose drive is broad, with `Wr = I` and with a `Wr` that sharpens."""
    sheet = ring(semisaturation, BROAD_TUNING)
    curves, findings = [], {}
    for name, weight in (("Wr ≠ I", sharpening_weight(sheet)), ("Wr = I", None)):
        for contrast in (1.0, 0.5):
            curve = _curve(
                name if contrast == 1 else "",
                sheet,
                lambda angle, contrast=contrast: sheet.grating(contrast, angle),
                ORIENTATIONS,
                FINE_ORIENTATIONS,
                recurrent_weight=weight,
            )
            curves.append(curve)
            with_these = f"{name}, {100 * contrast:.3g} % contrast"
            findings[f"half-width, {with_these} (degrees)"] = half_width(curve)
            findings[f"largest response, {with_these}"] = float(curve.y.max())
    return Phenomenon("recurrent weights", curves, findings)


def onset(semisaturation: float) -> Phenomenon:
    """Responses over time, in ms, to gratings that appear at time 0 and stay."""
    sheet = ring(semisaturation)
    contrasts = (1.0, 0.5, 0.25, 0.125)
    together = sheet.circuit(sheet.grating(torch.tensor(contrasts)))
    rates, _, _ = together.firing_rates(*simulate(together, TIMES))
    curves, findings = [], {}
    for contrast, response in zip(contrasts, rates[..., sheet.middle].T, strict=True):
        circuit = sheet.circuit(sheet.grating(contrast))
        state = circuit.steady_state(tol=TOLERANCE)
        settled = float(state.rates[sheet.middle])
        label = f"{100 * contrast:.3g} %"
        curves.append(Curve(label, TIMES, response, circuit, state))
        first = int((response >= settled / 2).nonzero()[0])
        findings[f"half of the steady state at {label} contrast (ms)"] = float(TIMES[first])
        findings[f"peak / steady state at {label} contrast"] = float(response.max()) / settled
    return Phenomenon("onset", curves, findings)


def fit_hyperbolic_ratio(contrasts: Tensor, responses: Tensor) -> HyperbolicRatio:
    """Solves `R (C^2 + c50^2) = r_max C^2` in least squares; exact where it holds.

    Args:
        contrasts: `C`, `(N,)`.
        responses: `R`, `(N,)`.
    """
    power = contrasts.square()
    system = torch.stack([power, -responses], dim=-1)
    r_max, squared = torch.linalg.lstsq(system, (responses * power).unsqueeze(-1)).solution[:, 0]
    return HyperbolicRatio(float(r_max), math.sqrt(squared))


def half_width(curve: Curve) -> float:
    """The angle from the peak at which a tuning curve falls to half of it, in degrees."""
    peak = int(curve.y.argmax())
    return crossing(curve.x[peak:] - curve.x[peak], -curve.y[peak:], -float(curve.y[peak]) / 2)


def crossing(x: Tensor, y: Tensor, level: float) -> float:
    """The `x` at which a rising `y` reaches a level, by linear interpolation; NaN without one."""
    above = (y >= level).nonzero()
    if not len(above) or not above[0]:
        return math.nan
    after = int(above[0])
    (x0, x1), (y0, y1) = x[after - 1 : after + 1].tolist(), y[after - 1 : after + 1].tolist()
    return x0 + (level - y0) / (y1 - y0) * (x1 - x0)


def _curve(
    label: str,
    sheet: Sheet,
    drive: Callable[..., Tensor],
    x: Tensor,
    fine_x: Tensor,
    attention: Tensor | float = 1.0,
    recurrent_weight: Tensor | None = None,
) -> Curve:
    """The middle neuron's responses at `x`, and Eq. 2 at `fine_x` where `Wr = I`.

    `drive` maps `(N,)` values to input drives `(N, n)`.
    """
    z = drive(x)
    circuit = sheet.circuit(z, attention, recurrent_weight)
    state = circuit.steady_state(tol=TOLERANCE)
    curve = Curve(label, x, state.rates[:, sheet.middle], circuit, state)
    if recurrent_weight is not None:
        return curve
    return dataclasses.replace(
        curve,
        fine_x=fine_x,
        fine_y=sheet.normalized(drive(fine_x), attention)[:, sheet.middle],
        discrepancy=float((state.rates - sheet.normalized(z, attention)).abs().max()),
    )
