"""The benchmarks run and write what they say, at a size that costs nothing."""

import json
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def run(monkeypatch, tmp_path):
    def start(name, *options):
        out = tmp_path / "report.json"
        script = str(BENCHMARKS / name)
        monkeypatch.syspath_prepend(BENCHMARKS)
        monkeypatch.setattr(sys, "argv", [script, *options, "--out", str(out)])
        runpy.run_path(script, run_name="__main__")
        return json.loads(out.read_text())

    return start


def test_sequence(run):
    sizes = ("--hidden-sizes", "4", "--steps", "5", "--batch", "3", "--rounds", "2")
    report = run("sequence.py", *sizes, "--memory-steps", "4")
    times = report["time"]["4"]
    assert times["ms_per_step"].keys() == {"fused", "reference", "lstm"}
    assert times["fused_over"].keys() == {"reference", "lstm"}
    assert all(peak > 0 for peak in report["memory"]["peak_bytes"].values())


def test_boundedness(run):
    sizes = ("--cells", "4", "--hidden-size", "4", "--steps", "200")
    sweep = ("--step-sizes", "0.02", "1.0", "--singular-values", "1", "9")
    rows = run("boundedness.py", *sizes, *sweep)["rows"]
    found = {
        (row["model"], row["largest_singular_value"], row["step_size"]): row["diverged"]
        for row in rows
    }
    assert len(found) == 8
    assert found["rectified", 1.0, 0.02] == 0
    assert found["main", 9.0, 1.0] > 0
