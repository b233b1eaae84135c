"""The benchmarks run and write what they say, at a size that costs nothing."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = ("--hidden-sizes", "4", "--steps", "5", "--batch", "3", "--rounds", "2")


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """A script's exit status and figures."""

    def start(name: str, *options: str) -> tuple[int, dict[str, Any]]:
        out = tmp_path / "report.json"
        script = str(BENCHMARKS / name)
        monkeypatch.setattr(sys, "argv", [script, *options, "--out", str(out)])
        status: Any = 0
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            status = end.code
        return status, json.loads(out.read_text())

    return start


def test_sequence(run: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    status, report = run("sequence.py", *SMALL, "--memory-steps", "4")
    assert status == 0
    assert report["failures"] == {}
    (result,) = report["results"]
    assert (result["units"], result["steps"]) == (4, 5)
    figures = result["contenders"]
    assert figures.keys() == {"auto", "fused", "reference", "nn.LSTM"}
    for figure in figures.values():
        assert 0 < figure["forward_milliseconds"] < figure["milliseconds"]
        assert len(figure["seconds"]["total"]) == figure["rounds"] == 2
        assert figure["peak_bytes"] > 0
    assert figures["auto"]["ratio"] == 1
    assert set(figures["auto"]["gradient_errors"]) >= {"recurrent_weight", "input", "initial a"}
    assert {bar["verdict"] for bar in report["bars"]} == {"met"}
    assert result["floor"]["floor_seconds"]["highest"] > 0


def test_contender_that_fails_costs_nothing_but_its_own_figures(
    run: Callable[..., tuple[int, dict[str, Any]]], tmp_path: Path
) -> None:
    status, report = run(
        "sequence.py",
        *SMALL,
        *("--memory-steps", "0", "--without", "fused", "--published", str(tmp_path)),
    )
    assert status == 1
    assert list(report["failures"]) == ["4 units: published"]
    assert "models" in report["failures"]["4 units: published"]
    figures = report["results"][0]["contenders"]
    assert "fused" not in figures
    assert "milliseconds" not in figures["published"]
    assert all("milliseconds" in figures[name] for name in ("auto", "reference", "nn.LSTM"))


def test_boundedness(run: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    sizes = ("--cells", "4", "--hidden-size", "4", "--steps", "200")
    sweep = ("--step-sizes", "0.02", "1.0", "--singular-values", "1", "9")
    _, report = run("boundedness.py", *sizes, *sweep)
    found = {
        (row["model"], row["largest_singular_value"], row["step_size"]): row["diverged"]
        for row in report["rows"]
    }
    assert len(found) == 8
    assert found["rectified", 1.0, 0.02] == 0
    assert found["main", 9.0, 1.0] > 0
