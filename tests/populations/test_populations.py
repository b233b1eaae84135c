"""Ready-made circuits do what they are made for, and stimuli are what they say."""

import math
from typing import Any

import pytest
import torch
from _circuits import DOUBLE, vector
from scipy.integrate import quad
from torch import Tensor

from deq_organics import Circuit, check_stability, cross_spectrum, simulate
from deq_organics.populations import (
    Sheet,
    covered,
    drifting,
    from_complex,
    hertz,
    line,
    orientations,
    per_millisecond,
    real_form,
    ring,
    sharpening_weight,
    surround,
    switched,
    to_complex,
    two_populations,
    working_memory,
)


class TestSheet:
    def test_a_ring_normalizes_contrast(self) -> None:
        """Half of the largest response at the semisaturation, whatever the number of neurons."""
        for neurons in (2, 7, 36):
            sheet = ring(0.25, neurons=neurons)
            state = sheet.circuit(sheet.grating(torch.tensor([0.25, 1.0]).double())).steady_state()
            rates = state.rates[:, sheet.middle]
            torch.testing.assert_close(rates, vector(0.5, 1 / 1.0625) * (rates[0] / 0.5))
            torch.testing.assert_close(
                state.rates, sheet.normalized(sheet.grating(vector(0.25, 1)))
            )

    def test_a_mask_and_a_surround_suppress(self) -> None:
        sheet = ring(0.2)
        test = sheet.grating(0.25)
        masked = sheet.circuit(torch.stack([test, test + sheet.grating(0.5, 90.0)])).steady_state()
        assert masked.rates[1, sheet.middle] < 0.7 * masked.rates[0, sheet.middle]
        field = line(0.2)
        growing = field.circuit(field.grating(0.5, 0.0, vector(1.0, 6.0))).steady_state()
        assert growing.rates[1, field.middle] < growing.rates[0, field.middle]

    def test_a_stimulus_elsewhere_moves_the_response(self) -> None:
        sheet = line(0.2, positions=21, spacing=1.0, neurons=2)
        assert len(sheet.x) == 42
        middle, right = (
            sheet.circuit(sheet.grating(0.5, 0.0, 1.0, center)).steady_state().rates
            for center in (0.0, 3.0)
        )
        best = int(right.argmax())
        assert float(sheet.x[best]) == 3.0
        assert best - int(middle.argmax()) == 6
        assert float(sheet.x[int(sheet.attention(2.0, 1.0, 3.0).argmax())]) == 3.0

    def test_sharpening(self) -> None:
        sheet = ring(0.2, 0.5)
        weight = sharpening_weight(sheet)
        assert float(torch.linalg.matrix_norm(weight, 2)) == pytest.approx(1.0)
        z = sheet.grating(1.0)
        sharp = sheet.circuit(z, recurrent_weight=weight)
        assert check_stability(sharp).stable
        broad = sheet.circuit(z).steady_state().rates
        rates = sharp.steady_state().rates
        half = [int((r > 0.5 * r.max()).sum()) for r in (rates, broad)]
        assert half[0] < half[1]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"positions": torch.zeros(2, 2)}, r"positions: got shape \(2, 2\)"),
            ({"orientations": torch.zeros(0)}, r"orientations: got shape \(0,\)"),
            ({"semisaturation": 0.0}, "semisaturation: got 0.0"),
            ({"receptive_field": -1.0}, "receptive_field: got -1.0"),
            ({"tau_y": math.nan}, "tau_y: got nan"),
        ],
    )
    def test_bad_sheets(self, changes: dict[str, Any], message: str) -> None:
        given: dict[str, Any] = {"positions": torch.zeros(1), "orientations": orientations(4)}
        with pytest.raises(ValueError, match=message):
            Sheet(**{**given, "semisaturation": 0.2, **changes})
        with pytest.raises(ValueError, match="count: got 0"):
            ring(0.2, neurons=0)


class TestStimuli:
    def test_apertures_are_integrals_of_receptive_fields(self) -> None:
        for x, inner, outer, width in ((0.0, 0.5, 1.0, 0.5), (2.0, 1.0, 3.0, 0.7)):

            def field(u: float, x: float = x, width: float = width) -> float:
                return math.exp(-0.5 * ((u - x) / width) ** 2) / (width * math.sqrt(2 * math.pi))

            disc = quad(field, -inner, inner)[0]
            ring_of = quad(field, inner, outer)[0] + quad(field, -outer, -inner)[0]
            assert float(covered(vector(x), inner, width)) == pytest.approx(disc)
            assert float(surround(vector(x), inner, outer, width)) == pytest.approx(ring_of)
        assert float(covered(vector(7.0), math.inf, 0.5)) == 1.0

    def test_a_drift_of_four_hertz(self) -> None:
        drive = drifting(vector(1.0, 2.0), 4.0, phase=vector(0.0, 90.0))
        times = vector(0.0, 62.5, 125.0, 250.0).unsqueeze(-1)
        expected = vector([2.0, 2.0], [1.0, 4.0], [0.0, 2.0], [2.0, 2.0])
        torch.testing.assert_close(drive(times), expected)
        assert hertz(per_millisecond(40.0)) == 40.0
        assert per_millisecond(40.0) == 0.04

    @pytest.mark.slow
    def test_a_switch_is_met_exactly(self) -> None:
        """From the steady state of the first stimulus to that of the second."""
        sheet = ring(0.2, neurons=6)
        first, second = (0.5 * sheet.grating(contrast) for contrast in (0.1, 0.8))
        circuit = sheet.circuit(sheet.grating(0.1))
        t = torch.linspace(0, 400, 9, dtype=DOUBLE)
        moved = simulate(
            circuit,
            t,
            start=circuit.steady_state(tol=1e-12),
            input_drive=switched([first, second], [100.0]),
            jumps=[100.0],
        )
        torch.testing.assert_close(moved.y[2], moved.y[0], rtol=1e-5, atol=1e-7)
        later = sheet.circuit(sheet.grating(0.8)).steady_state(tol=1e-12)
        torch.testing.assert_close(moved.y[-1], later.y, rtol=1e-4, atol=1e-5)
        assert switched([first, second], [100.0])(vector(100.0)).equal(second)

    def test_bad_stimuli(self) -> None:
        drive = vector(1.0)
        with pytest.raises(ValueError, match="drives: got 1 with 1 times"):
            switched([drive], [1.0])
        with pytest.raises(ValueError, match="expected increasing ones"):
            switched([drive] * 3, [2.0, 2.0])
        with pytest.raises(TypeError, match=r"drives\[1\]: got float"):
            switched([drive, 1.0], [2.0])  # type: ignore[list-item]
        with pytest.raises(ValueError, match="frequency: got inf"):
            drifting(drive, math.inf)


class TestTwoPopulations:
    def test_they_normalize_each_other(self) -> None:
        z = vector([0.3, 0.0], [0.3, 0.6])
        rates = two_populations(z, semisaturation=0.2).steady_state().rates
        power = z.square()
        torch.testing.assert_close(rates, power / (0.04 + power.sum(-1, keepdim=True)))
        alone = two_populations(z, semisaturation=0.2, cross_normalization=0.0).steady_state()
        torch.testing.assert_close(alone.rates, power / (0.04 + power))
        looked_at = two_populations(z, attention=vector(2.0, 1.0)).steady_state().rates
        assert looked_at[1, 0] > rates[1, 0]

    def test_competition_makes_differences_larger(self) -> None:
        z = vector(0.4, 0.5)
        plain = two_populations(z).steady_state().rates
        circuit = two_populations(z, competition=0.5)
        assert circuit.steady_state().converged
        rates = circuit.steady_state().rates
        assert rates[1] / rates[0] > 1.5 * plain[1] / plain[0]

    def test_bad_arguments(self) -> None:
        with pytest.raises(ValueError, match=r"z: got shape \(3,\), expected \(..., 2\)"):
            two_populations(torch.ones(3))
        with pytest.raises(ValueError, match="competition: got -1"):
            two_populations(torch.ones(2), competition=-1.0)


class TestComplexWeights:
    def test_the_real_form_multiplies_as_complex_numbers(self) -> None:
        generator = torch.Generator().manual_seed(0)
        parts = torch.randn(2, 3, 4, 4, generator=generator, dtype=DOUBLE)
        weight = torch.complex(*parts)
        vectors = torch.complex(*torch.randn(2, 3, 4, generator=generator, dtype=DOUBLE))
        real = (real_form(weight) @ from_complex(vectors).unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(to_complex(real), (weight @ vectors.unsqueeze(-1)).squeeze(-1))
        torch.testing.assert_close(to_complex(from_complex(vectors)), vectors)

    def test_bad_arguments(self) -> None:
        with pytest.raises(TypeError, match=r"weight: got torch\.float32"):
            real_form(torch.ones(2, 2))
        with pytest.raises(ValueError, match=r"weight: got shape \(2, 3\)"):
            real_form(torch.ones(2, 3, dtype=torch.complex64))
        with pytest.raises(TypeError, match="values: got list"):
            from_complex([1.0])  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"values: got shape \(3,\)"):
            to_complex(torch.ones(3))


def _delay(frequency: float, angle: float) -> tuple[Any, Tensor, Tensor]:
    """A cue of 100 ms, then 900 ms without."""
    memory = working_memory(9, frequency=frequency)
    cue = 0.3 * memory.cue(angle)
    t = torch.linspace(0, 1000, 201, dtype=DOUBLE)
    seen = simulate(
        memory.circuit,
        t,
        input_drive=switched([cue, torch.zeros_like(cue)], [100.0]),
        jumps=[100.0],
        rtol=1e-8,
    )
    return memory, t, seen.y


@pytest.mark.slow
@pytest.mark.parametrize("angle", [0.0, 77.0, -130.0])
def test_an_angle_is_held_without_input(angle: float) -> None:
    memory, _, y = _delay(0.0, angle)
    held, strength = memory.decoded(y[100:])
    torch.testing.assert_close(held, torch.full_like(held, angle), rtol=0, atol=1e-3)
    assert float(torch.linalg.vector_norm(y[-1])) == pytest.approx(memory.amplitude, rel=1e-3)
    assert float(strength[-1]) == pytest.approx(memory.amplitude, rel=1e-3)


@pytest.mark.slow
def test_complex_weights_make_it_oscillate() -> None:
    """The memory keeps its angle, and turns once in 125 ms at 8 Hz."""
    memory, t, y = _delay(8.0, 40.0)
    axis = memory.decoded(y[120:])[0] % 180.0
    torch.testing.assert_close(axis, torch.full_like(axis, 40.0), rtol=0, atol=1e-2)
    assert float(torch.linalg.vector_norm(y[-1])) == pytest.approx(memory.amplitude, rel=1e-3)
    torch.testing.assert_close(y[150], y[175], rtol=0, atol=1e-3)
    assert (y[150] - y[160]).abs().max() > 0.1
    assert float(t[175] - t[150]) == 125.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"neurons": 2}, "neurons: got 2"),
        ({"held_rate": 0.1}, "held_rate: got 0.1, expected above semisaturation"),
        ({"held_rate": 1.0}, "held_rate: got 1.0"),
        ({"semisaturation": 0.0}, "semisaturation: got 0.0"),
        ({"frequency": math.inf}, "frequency: got inf"),
        ({"tau_y": -1.0}, "tau_y: got -1.0"),
    ],
)
def test_bad_memories(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        working_memory(**arguments)


def test_spectra_in_hertz() -> None:
    sheet = ring(0.2, neurons=4)
    circuit: Circuit = sheet.circuit(sheet.grating(vector(0.5)))
    f = torch.linspace(1, 100, 50, dtype=DOUBLE)
    power = cross_spectrum(circuit, per_millisecond(f)).power
    assert torch.isfinite(power).all()
