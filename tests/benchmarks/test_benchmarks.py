"""The benchmarks run, small, and find what they must."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, out: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARKS / script), "--out", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


@pytest.mark.slow
def test_every_random_circuit_is_solved_or_has_no_steady_state(tmp_path: Path) -> None:
    record = run(
        "steady_states.py", tmp_path / "out.json", "--sizes", "1", "10", "--circuits", "300"
    )
    assert record["failures"] == 0
    assert [result["circuits"] for result in record["results"]] == [300, 300]
    for result in record["results"]:
        assert result["solved"] + sum(result["fates"].values()) == 300
    assert sum(record["results"][0]["fates"].values()) > 0


@pytest.mark.slow
def test_checker_agrees_with_numpy(tmp_path: Path) -> None:
    record = run(
        "stability_checker.py",
        tmp_path / "out.json",
        *("--samples", "40", "--hidden-size", "12", "--compared", "40"),
    )
    assert record["stable_fraction"] == 1.0
    assert record["deviation_of_real_part"] < 1e-6
    assert record["deviation_of_eigenvalue"] < 1e-6
    assert set(record["seconds"]) == set(record["ratios_of_medians"])
    assert record["ratios_of_medians"]["dense eigenvalues"] == 1.0


@pytest.mark.slow
def test_layer_is_raced_at_equal_accuracy(tmp_path: Path) -> None:
    record = run(
        "static_layer.py",
        tmp_path / "out.json",
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
def test_on_cuda(script: str, sizes: str, tmp_path: Path) -> None:
    record = run(script, tmp_path / "out.json", "--device", "cuda", *sizes.split())
    assert record["failures"] == {}
    assert record["machine"]["gpu"] == torch.cuda.get_device_name()
    assert record["rates"]["operations"].keys() == {"highest", "high", "medium"}
