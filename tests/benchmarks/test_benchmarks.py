"""The benchmarks run, small, and find what they must."""

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import peers

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The figures of a script that runs in this process."""

    def start(script: str, *options: str) -> dict[str, Any]:
        out, path = tmp_path / "out.json", str(BENCHMARKS / script)
        monkeypatch.setattr(sys, "argv", [path, "--out", str(out), *options])
        status: Any = 0
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            status = end.code
        assert not status
        return json.loads(out.read_text())

    return start


@pytest.mark.slow
def test_every_random_circuit_is_solved_or_has_no_steady_state(tmp_path: Path) -> None:
    """In a process of its own, for it starts others."""
    out = tmp_path / "out.json"
    sizes = ("--sizes", "1", "10", "--circuits", "300", "--processes", "1")
    command = [sys.executable, str(BENCHMARKS / "steady_states.py"), "--out", str(out), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(out.read_text())
    assert record["failures"] == 0
    assert [result["circuits"] for result in record["results"]] == [300, 300]
    for result in record["results"]:
        assert result["solved"] + sum(result["fates"].values()) == 300
    assert sum(record["results"][0]["fates"].values()) > 0


@pytest.mark.slow
def test_checker_agrees_with_numpy(run: Callable[..., dict[str, Any]]) -> None:
    record = run(
        "stability_checker.py",
        *("--samples", "40", "--hidden-size", "12", "--compared", "40"),
    )
    assert record["stable_fraction"] == 1.0
    assert record["deviation_of_real_part"] < 1e-6
    assert record["deviation_of_eigenvalue"] < 1e-6
    assert set(record["seconds"]) == set(record["ratios_of_medians"])
    assert record["ratios_of_medians"]["dense eigenvalues"] == 1.0


@pytest.mark.slow
def test_layer_is_raced_at_equal_accuracy(
    run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A search over two settings of a solver: that of the benchmark takes half a minute.
    options = {"anderson": [(("lam", 1e-12), ("m", 6))], "broyden": [()]}
    damped: list[Any] = [(("tau", 1.0),), (("tau", 0.8),)]
    monkeypatch.setattr(peers, "_options", lambda solver, depths: options.get(solver, damped))
    record = run(
        "static_layer.py",
        *("--hidden-size", "6", "--batch", "8", "--rounds", "2", "--no-normalized"),
    )
    for setting in record["results"]:
        names = [contestant["name"] for contestant in setting["contestants"]]
        assert names[0] == "deq_organics"
        assert len(names) > 1
        assert all(contestant["residual"] <= 2e-6 for contestant in setting["contestants"])
    few, many = record["memory"][-2:]
    assert (few["iterations"], few["peak_bytes"]) < (many["iterations"], many["peak_bytes"] + 1)
    assert many["peak_bytes"] == pytest.approx(few["peak_bytes"], rel=0.02)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize(
    ("script", "sizes"),
    [
        ("sequence.py", "--hidden-sizes 16 --steps 6 --batch 4 --rounds 2 --memory-steps 6"),
        ("static_layer.py", "--hidden-size 6 --batch 8 --rounds 2 --no-normalized"),
    ],
)
def test_on_cuda(script: str, sizes: str, run: Callable[..., dict[str, Any]]) -> None:
    record = run(script, "--device", "cuda", *sizes.split())
    assert record["failures"] == {}
    assert record["machine"]["gpu"] == torch.cuda.get_device_name()
    assert record["rates"]["operations"].keys() == {"highest", "high", "medium"}
