"""Runs that are killed or spread over processes, as processes of their own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
LIMIT = 256
STEPS_AN_EPOCH = 4
OPTIONS = {
    "static_mnist": ["--model", "50:50"],
    "smnist_bptt": ["--hidden-size", "4", "--resize", "4"],
}

KILLED_IN_AN_EPOCH = """
import os, signal
from torch.optim.swa_utils import AveragedModel
update, updates = AveragedModel.update_parameters, []
def killing_update(self, model):
    update(self, model)
    updates.append(model)
    if len(updates) == {count}:
        os.kill(os.getpid(), signal.SIGKILL)
AveragedModel.update_parameters = killing_update
"""

KILLED_IN_A_WRITE = """
import os, signal
sync, files = os.fsync, []
def killing_sync(file):
    sync(file)
    files.append(file)
    if len(files) == {count}:
        os.ftruncate(file, os.fstat(file).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
os.fsync = killing_sync
"""

RUN = """
import sys
import {example}
from program.errors import run_example
sys.exit(run_example({example}.main))
"""


@pytest.fixture(scope="module", params=OPTIONS)
def example(request: pytest.FixtureRequest) -> str:
    """The name of an example."""
    return request.param


def start(
    example: str, out: Path, images: Path, *arguments: str, before: str = ""
) -> subprocess.Popen[str]:
    """Starts an example in a process of its own, with one thread."""
    options = [*OPTIONS[example], "--epochs", "3", "--limit", str(LIMIT), "--device", "cpu"]
    folders = ["--data", str(images), "--out", str(out)]
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            before + RUN.format(example=example),
            *options,
            *folders,
            *arguments,
        ],
        cwd=EXAMPLES,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def runs(
    example: str, tmp_path_factory: pytest.TempPathFactory, shared_images: Path
) -> dict[str, Path]:
    """The folders of an undisturbed run, and of two that were killed and have been resumed."""
    base = tmp_path_factory.mktemp("runs")
    kills = {
        "undisturbed": "",
        "killed in an epoch": KILLED_IN_AN_EPOCH.format(count=STEPS_AN_EPOCH + 2),
        "killed in a write": KILLED_IN_A_WRITE.format(count=3),
    }
    folders = {name: base / name for name in kills}
    started = {
        name: start(example, folders[name], shared_images, before=kill)
        for name, kill in kills.items()
    }
    for name, process in started.items():
        output, _ = process.communicate(timeout=600)
        expected = 0 if name == "undisturbed" else -signal.SIGKILL
        assert process.returncode == expected, output
    assert (folders["killed in an epoch"] / "checkpoint-000001.pt").exists()
    assert (folders["killed in a write"] / "checkpoint-000002.pt.tmp").exists()
    resumed = [
        start(example, folder, shared_images, "--resume")
        for name, folder in folders.items()
        if name != "undisturbed"
    ]
    for process in resumed:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
        assert "after epoch 1 of 3" in output
    return folders


@pytest.mark.parametrize("kill", ["killed in an epoch", "killed in a write"])
def test_a_resumed_run_ends_bit_for_bit_as_an_undisturbed_one(
    runs: dict[str, Path], kill: str
) -> None:
    expected, found = runs["undisturbed"], runs[kill]
    name = "model.safetensors"
    assert (found / name).read_bytes() == (expected / name).read_bytes()
    last = [
        torch.load(folder / "checkpoint-000003.pt", weights_only=True)
        for folder in (expected, found)
    ]
    for part in ("model", "average"):
        for key, value in last[0][part].items():
            assert torch.equal(value, last[1][part][key]), key
    optimizers = last[0]["optimizers"]
    assert optimizers
    for name, own in optimizers.items():
        other = last[1]["optimizers"][name]
        assert own["schedule"] == other["schedule"]
        for index, state in own["optimizer"]["state"].items():
            for key, value in state.items():
                resumed_value = other["optimizer"]["state"][index][key]
                assert torch.equal(value, resumed_value), (name, index, key)
    histories = [
        json.loads((folder / "metrics.json").read_text())["history"] for folder in (expected, found)
    ]
    assert histories[0] == histories[1]


def test_two_processes_train_together(example: str, tmp_path: Path, shared_images: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    options = [*OPTIONS[example], "--epochs", "1", "--limit", "512", "--device", "cpu"]
    folders = ["--data", str(shared_images), "--out", str(tmp_path / "run")]
    finished = subprocess.run(
        [*launcher, "--standalone", str(EXAMPLES / f"{example}.py"), *options, *folders],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("epoch 1/1") == 1
    assert finished.stdout.count("test accuracy") == 1
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["processes"] == 2
