"""The phenomena of normalization.py as properties of its circuits, and its command line."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import normalization
from deq_organics import check_stability, m_matrix_certificate, simulate
from deq_organics.populations import line, ring, sharpening_weight
from phenomena.measurements import (
    MASK,
    TEST,
    Curve,
    Phenomenon,
    attentional_gain,
    contrast_response,
    cross_orientation_suppression,
    crossing,
    fit_hyperbolic_ratio,
    half_width,
    masked_contrast_response,
    onset,
    orientation_tuning,
    recurrent_sharpening,
    surround_suppression,
)

Run = Callable[..., tuple[int, str, str]]
SIGMA = 0.2
GAIN = 1.4
EXPERIMENTS: dict[str, Callable[[], Phenomenon]] = {
    "contrast response": lambda: contrast_response(SIGMA),
    "orientation tuning": lambda: orientation_tuning(SIGMA),
    "cross-orientation suppression": lambda: cross_orientation_suppression(SIGMA),
    "shift by a mask": lambda: masked_contrast_response(SIGMA),
    "surround suppression": lambda: surround_suppression(SIGMA),
    "attentional gain": lambda: attentional_gain(SIGMA, GAIN),
    "recurrent weights": lambda: recurrent_sharpening(SIGMA),
    "onset": lambda: onset(SIGMA),
}


@functools.cache
def seen(name: str) -> Phenomenon:
    """A phenomenon, measured once."""
    return EXPERIMENTS[name]()


def curves(name: str) -> list[Curve]:
    return list(seen(name).curves)


def rises(y: Tensor) -> bool:
    return bool((y.diff() > 0).all())


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_steady_states_are_stable_and_those_of_equation_2(name: str) -> None:
    for curve in curves(name):
        assert curve.state.converged.all()
        if curve.circuit.recurrent_weight is None:
            assert curve.discrepancy < 1e-10
            assert m_matrix_certificate(curve.circuit).certified.all()
        else:
            assert check_stability(curve.circuit, curve.state).stable.all()


def test_equation_2_holds_for_an_identity_that_is_not_known_to_be_one() -> None:
    sheet = line(SIGMA)
    z = sheet.grating(torch.tensor([0.1, 1.0]), 30.0, 2.0)
    attention = sheet.attention(GAIN, 1.0)
    identity = torch.eye(z.shape[-1], dtype=z.dtype)
    state = sheet.circuit(z, attention, identity).steady_state(tol=1e-13)
    assert (state.rates - sheet.normalized(z, attention)).abs().max() < 1e-10


def test_responses_saturate_with_half_of_the_maximum_at_c50() -> None:
    preferred = curves("contrast response")[0]
    assert rises(preferred.y)
    assert rises(-preferred.y[-8:].diff())
    sheet = ring(SIGMA)
    contrasts = torch.tensor([SIGMA, 1e3])
    half, most = sheet.circuit(sheet.grating(contrasts)).steady_state().rates[:, sheet.middle]
    assert float(half / most) == pytest.approx(0.5, rel=0.01)
    fit = fit_hyperbolic_ratio(preferred.x, preferred.y)
    assert fit == pytest.approx((1, SIGMA), rel=1e-6)


def test_other_orientations_saturate_at_lower_levels_and_the_same_contrast() -> None:
    fits = [fit_hyperbolic_ratio(curve.x, curve.y) for curve in curves("contrast response")]
    assert rises(-torch.tensor([fit.r_max for fit in fits]))
    assert [fit.c50 for fit in fits] == pytest.approx([SIGMA] * 4, rel=1e-6)


def test_tuning_has_the_same_width_at_all_contrasts() -> None:
    tuned = curves("orientation tuning")
    widths = [half_width(curve) for curve in tuned]
    assert widths == pytest.approx([widths[0]] * 4, rel=1e-6)
    assert 20 < widths[0] < 25
    assert tuned[0].y.max() > 4 * tuned[-1].y.max()


def test_an_orthogonal_mask_suppresses_though_it_evokes_hardly_a_response() -> None:
    *tests, alone = curves("cross-orientation suppression")
    for curve in tests:
        assert rises(-curve.y)
    assert alone.y.max() < 0.01
    findings = seen("cross-orientation suppression").findings
    assert findings["suppression index"] > 0.5
    z = ring(SIGMA).grating(TEST) + ring(SIGMA).grating(MASK, 90.0)
    expected = float(ring(SIGMA).normalized(z)[ring(SIGMA).middle])
    assert findings["response to test and mask (50 %)"] == pytest.approx(expected, rel=1e-9)


def test_a_mask_shifts_the_contrast_response_to_the_right() -> None:
    masked = curves("shift by a mask")
    halves = torch.tensor([crossing(curve.x, curve.y, 0.5) for curve in masked])
    assert rises(halves)
    assert halves[-1] > 2 * halves[0]
    for curve in masked:
        assert rises(curve.y[curve.x > 0.05])


def test_responses_grow_and_fall_with_the_radius() -> None:
    peaks = []
    for curve in curves("surround suppression"):
        peak = int(curve.y.argmax())
        assert 0 < peak < len(curve.y) - 1
        assert rises(curve.y[: peak + 1])
        assert rises(-curve.y[peak:])
        peaks.append(float(curve.x[peak]))
    high, low = peaks
    assert low > high
    findings = seen("surround suppression").findings
    assert findings["suppression index at 50 % contrast"] > 0.5
    assert 0.05 < findings["suppression index at 10 % contrast"] < 0.2


def test_attention_raises_every_response() -> None:
    wide, without_wide, narrow, without_narrow = curves("attentional gain")
    assert (wide.y > without_wide.y).all()
    assert (narrow.y > without_narrow.y).all()


def test_a_wide_field_is_a_gain_of_contrast_and_a_narrow_one_a_gain_of_response() -> None:
    wide, without_wide, narrow, without_narrow = (
        fit_hyperbolic_ratio(curve.x, curve.y) for curve in curves("attentional gain")
    )
    assert wide.c50 / without_wide.c50 == pytest.approx(1 / GAIN, rel=0.01)
    assert wide.r_max / without_wide.r_max == pytest.approx(1, rel=0.01)
    assert narrow.r_max / without_narrow.r_max > 1.5
    assert 0.85 < narrow.c50 / without_narrow.c50 < 1


def test_recurrent_weights_sharpen_a_broad_drive() -> None:
    *recurrent, feedforward, _ = curves("recurrent weights")
    for curve in recurrent:
        assert half_width(curve) < 0.75 * half_width(feedforward)
    weight = sharpening_weight(ring(SIGMA))
    assert float(torch.linalg.matrix_norm(weight, 2)) == pytest.approx(1)
    torch.testing.assert_close(weight.sum(-1), torch.zeros(36).double())


def test_onsets_are_faster_and_overshoot_at_high_contrast() -> None:
    findings = seen("onset").findings
    labels = ("100 %", "50 %", "25 %", "12.5 %")
    times = [findings[f"half of the steady state at {label} contrast (ms)"] for label in labels]
    peaks = [findings[f"peak / steady state at {label} contrast"] for label in labels]
    assert rises(torch.tensor(times))
    assert rises(-torch.tensor(peaks))
    assert peaks[0] > 1.5
    assert peaks[-1] == pytest.approx(1, abs=0.01)
    for curve in curves("onset"):
        settled = float(curve.state.rates[ring(SIGMA).middle])
        assert float(curve.y[-1]) == pytest.approx(settled, rel=0.01)


def test_a_circuit_of_the_sheet_settles_at_its_steady_state() -> None:
    sheet = line(SIGMA)
    circuit = sheet.circuit(sheet.grating(0.5, 0.0, 1.0), sheet.attention(GAIN, 1.0))
    y, _ = simulate(circuit, torch.tensor([0.0, 300.0]))
    torch.testing.assert_close(y[-1], circuit.steady_state().y, rtol=1e-4, atol=1e-6)


def test_without_a_crossing_there_is_none() -> None:
    x = torch.arange(3.0)
    assert crossing(x, 2 * x, 3.0) == 1.5
    assert crossing(x, x, 5.0) != crossing(x, x, 5.0)


@pytest.mark.slow
def test_the_example_says_what_it_found_and_draws_it(run_main: Run, tmp_path: Path) -> None:
    status, output, error = run_main(normalization.main, "--out", tmp_path / "new" / "folder")
    assert (status, error) == (0, "")
    for name in EXPERIMENTS:
        assert f"\n{name}\n" in f"\n{output}"
    assert "c50, preferred orientation (%): 20" in output
    count, total = output.partition("stable: ")[2].partition(",")[0].split(" of ")
    assert int(count) == int(total) > 500
    picture = tmp_path / "new" / "folder" / "normalization.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"drawn in {picture}" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--c50", "0"], "--c50 is 0; expected 1 to 100 percent"),
        (["--c50", "101"], "--c50 is 101; expected 1 to 100 percent"),
        (["--c50", "nan"], "--c50 is nan; expected 1 to 100 percent"),
        (["--attention-gain", "1"], "--attention-gain is 1; expected more than 1, 10 at most"),
        (["--attention-gain", "-2"], "--attention-gain is -2; expected more than 1, 10 at most"),
        (["--out", "file"], "--out file cannot be made a folder"),
    ],
)
def test_bad_options_are_refused(
    run_main: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "file").touch()
    status, output, error = run_main(normalization.main, *arguments)
    assert status == 2
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not output


@pytest.mark.parametrize("arguments", [["--c50", "high"], ["--contrast", "1"]])
def test_options_that_cannot_be_parsed_are_refused(run_main: Run, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        run_main(normalization.main, *arguments)
    assert refusal.value.code == 2
