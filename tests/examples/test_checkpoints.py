"""Checkpoints are whole, and damaged or foreign ones are noticed."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from program.errors import ExampleError
from program.files import open_new_folder, write_atomically, write_json

IDENTITY = {"model": "80:80", "seed": 0}


def make_checkpoint(epoch: int) -> Checkpoint:
    nothing: dict[str, Any] = {}
    return Checkpoint(
        identity=IDENTITY,
        epoch=epoch,
        seconds=1.5,
        model={"weight": torch.full((3,), float(epoch))},
        average=nothing,
        optimizers=nothing,
        best=nothing,
        history=[{"epoch": epoch, "largest": None}],
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for epoch in (1, 2, 3):
        save_checkpoint(tmp_path, make_checkpoint(epoch))
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_two_are_kept_and_the_newest_is_read(folder: Path) -> None:
    assert names(folder) == ["checkpoint-000002.pt", "checkpoint-000003.pt"]
    loaded = load_checkpoint(folder, IDENTITY)
    assert loaded.epoch == 3
    assert torch.equal(loaded.model["weight"], torch.full((3,), 3.0))
    assert loaded.history == [{"epoch": 3, "largest": None}]


@pytest.mark.parametrize("size", [0, 10, 1000])
def test_a_truncated_checkpoint_gives_way_to_the_one_before(
    folder: Path, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = folder / "checkpoint-000003.pt"
    newest.write_bytes(newest.read_bytes()[:size])
    assert load_checkpoint(folder, IDENTITY).epoch == 2
    assert "checkpoint-000003.pt cannot be read" in capsys.readouterr().out


def test_a_checkpoint_that_lacks_something_gives_way(folder: Path) -> None:
    torch.save({"epoch": 3}, folder / "checkpoint-000003.pt")
    assert load_checkpoint(folder, IDENTITY).epoch == 2


def test_no_readable_checkpoint_is_an_error(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ExampleError, match="no readable checkpoint among the 2"):
        load_checkpoint(folder, IDENTITY)


def test_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExampleError, match="--resume found no checkpoint in"):
        load_checkpoint(tmp_path / "nowhere", IDENTITY)


def test_a_checkpoint_of_another_run_is_an_error(folder: Path) -> None:
    message = "model is '80:80' there and '50:50' here; seed is 0 there and 1 here"
    with pytest.raises(ExampleError, match=message):
        load_checkpoint(folder, {"model": "50:50", "seed": 1})


def test_an_interrupted_write_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_json_is_standard(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "metrics.json", {"value": float("nan")})
    assert names(tmp_path) == []


def test_a_folder_with_something_in_it_is_refused(folder: Path) -> None:
    message = rf"--out {re.escape(str(folder))} already holds checkpoint-000002.pt"
    with pytest.raises(ExampleError, match=message):
        open_new_folder(folder)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ExampleError, match="cannot be made a folder"):
        open_new_folder(file)


def test_a_folder_with_an_unfinished_file_is_new(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-000000.pt.tmp").touch()
    open_new_folder(tmp_path)
