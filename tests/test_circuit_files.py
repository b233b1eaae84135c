"""Circuits in files: the same bits come back, and nothing unknown is read."""

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from _circuits import DOUBLE, POOL, random_parameters, vector
from safetensors import safe_open

from deq_organics import Circuit

ENTRY = "deq_organics.circuit"


def _same(first: Circuit, second: Circuit) -> None:
    for name, value in first.parameters._asdict().items():
        other = getattr(second, name)
        if isinstance(value, torch.Tensor):
            assert value.dtype == other.dtype, name
            assert value.shape == other.shape, name
            # Bit by bit: signs of zeros, and the smallest numbers.
            integers = torch.int64 if value.dtype == DOUBLE else torch.int32
            bits = value.detach().contiguous().view(integers)
            assert torch.equal(bits, other.contiguous().view(integers)), name
        else:
            assert type(value) is type(other), name
            assert value == other, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, DOUBLE])
@pytest.mark.parametrize("recurrence", ["identity", "shared", "per-circuit"])
@pytest.mark.parametrize("rectified", [False, True])
def test_round_trip_is_exact(
    tmp_path: Path, dtype: torch.dtype, recurrence: str, rectified: bool
) -> None:
    given = random_parameters((3,), 4, recurrence=recurrence, rectified=rectified, dtype=dtype)
    for exponent in (2.0, 1.0 + 2.0**-40, torch.full((4,), 1.7, dtype=dtype)):
        circuit = Circuit(**{**given, "exponent": exponent}, tau_y=3.1)
        circuit.save(tmp_path / "circuit")
        _same(circuit, Circuit.load(tmp_path / "circuit"))


def test_strange_numbers_and_strides(tmp_path: Path) -> None:
    drive = vector([0.0, -0.0], [5e-324, 1.7e308], [1e-300, -1.0]).T.contiguous().T
    weight = POOL.T.expand(3, 2, 2)
    circuit = Circuit(drive, 5e-324, POOL.T.clone().T, weight, 1e-9, drive.abs()[2] + 1)
    circuit.save(str(tmp_path / "circuit"))
    _same(circuit, Circuit.load(str(tmp_path / "circuit")))


def test_one_tensor_for_two_parameters_and_gradients(tmp_path: Path) -> None:
    one = torch.ones(2, 2, requires_grad=True)
    circuit = Circuit(one[0], one[1], one, one)
    circuit.save(tmp_path / "circuit")
    again = Circuit.load(tmp_path / "circuit")
    _same(circuit, again)
    assert not again.normalization_weight.requires_grad


def test_equal_circuits_make_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Circuit(**random_parameters()).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def _tampered(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """A file whose tensors and whose metadata were changed."""
    Circuit(**random_parameters((2,), 3)).save(path)
    with safe_open(path, framework="pt") as file:
        entry = json.loads(file.metadata()[ENTRY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(entry, tensors)
    other = entry.pop("other metadata", {})
    metadata = {ENTRY: entry.pop("text", json.dumps(entry)), **other}
    path.write_bytes(safetensors.torch.save(tensors, metadata=metadata))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e, t: e.update(format_version=2), "format version 2 .written by deq_organics"),
        (lambda e, t: e.update(format_version=True), "format version True"),
        (lambda e, t: e.update(format_version="1"), "format version '1'"),
        (lambda e, t: e.pop("format_version"), "format version None"),
        (lambda e, t: e.update(noise=1), r"unknown or missing options \['noise'\]"),
        (lambda e, t: e.pop("rectified"), r"unknown or missing options \['rectified'\]"),
        (lambda e, t: e.update(exponent=0.5), "exponent: got 0.5"),
        (lambda e, t: e.update(exponent=None), "with the tensors"),
        (lambda e, t: t.pop("recurrent_weight"), "with the tensors"),
        (lambda e, t: t.update(delay=torch.ones(3)), "with the tensors"),
        (lambda e, t: t.update(exponent=torch.ones(3).double()), "with the tensors"),
        (lambda e, t: t.update(tau_y=-t["tau_y"]), "tau_y: got a smallest value of -1"),
        (lambda e, t: t.update(tau_y=t["tau_y"].float()), "tau_y: got torch.float32"),
        (lambda e, t: t.update(tau_y=t["tau_y"].half()), "expected float32 or float64"),
        (lambda e, t: t.update(tau_y=t["tau_y"][:2]), r"tau_y: got shape \(2,\)"),
        (lambda e, t: e.update(text="{"), "options that are no JSON"),
        (lambda e, t: e.update(text="3"), "options 3"),
        (lambda e, t: e.update({"other metadata": {"x": "y"}}), "unknown metadata 'x'"),
    ],
)
def test_what_is_not_known_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None], message: str
) -> None:
    path = _tampered(tmp_path / "circuit", change)
    with pytest.raises(ValueError, match=message):
        Circuit.load(path)


def test_a_bool_must_be_one(tmp_path: Path) -> None:
    path = _tampered(tmp_path / "circuit", lambda e, t: e.update(rectified=1))
    with pytest.raises(TypeError, match="rectified: got 1"):
        Circuit.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    safetensors.torch.save_file({"weight": torch.ones(2)}, weights)
    with pytest.raises(ValueError, match="no entry 'deq_organics"):
        Circuit.load(weights)
    Circuit(**random_parameters()).save(tmp_path / "circuit")
    whole = (tmp_path / "circuit").read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        (tmp_path / "half").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cannot be read"):
            Circuit.load(tmp_path / "half")
    with pytest.raises(FileNotFoundError, match="path: got"):
        Circuit.load(tmp_path / "none")
    with pytest.raises(TypeError, match="path: got int"):
        Circuit.load(3)  # type: ignore[arg-type]


def test_a_failing_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "circuit"
    first, second = (Circuit(**random_parameters(seed=seed)) for seed in (0, 1))
    first.save(path)

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="no space left"):
            second.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["circuit"]
    _same(first, Circuit.load(path))
    second.save(path)
    _same(second, Circuit.load(path))


def test_a_link_is_followed_and_permissions_are_usual(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "circuit")
    Circuit(**random_parameters()).save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "usual").write_bytes(b"")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("link", "usual")]
    assert modes[0] == modes[1]


def test_what_has_no_values_is_refused(tmp_path: Path) -> None:
    meta = Circuit(torch.ones(2, 3), 0.5, torch.eye(3), torch.ones(3, 3)).to("meta")
    with pytest.raises(TypeError, match="input_drive: got a tensor without values"):
        meta.save(tmp_path / "circuit")
    assert not list(tmp_path.iterdir())


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = Circuit(**random_parameters())
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"save: .* pip install 'deq_organics\[files\]'"):
        circuit.save(tmp_path / "circuit")
    with pytest.raises(ImportError, match="load: needs the package safetensors"):
        Circuit.load(tmp_path / "circuit")
