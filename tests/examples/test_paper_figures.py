"""The command line of paper_figures.py, and whether its figures show what the captions claim."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

import paper_figures
from deq_organics.steady_state.methods.algorithm1 import solve_algorithm1
from figures import hidden_states
from figures.convergence import ITERATIONS, iterate, settle_circuits
from figures.eigenvalues import train_and_watch
from figures.hidden_states import load_sequence_models
from figures.phase_portraits import (
    Portrait,
    find_fixed_points,
    recurrence_portraits,
    time_constant_portraits,
)
from mnist.data import load_mnist
from program.errors import ExampleError
from program.pictures import save

Run = Callable[..., tuple[int, str, str]]
PNG = b"\x89PNG\r\n\x1a\n"
SMALLEST_PICTURE = 10_000  # bytes


@pytest.fixture
def run_figures(run_main: Run) -> Run:
    """Runs paper_figures.py."""
    return functools.partial(run_main, paper_figures.main)


@pytest.fixture
def empty_portraits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes figures 1 and 3 in no time."""
    monkeypatch.setattr(paper_figures, "draw_portraits", lambda portraits: (Figure(), "nothing"))


def check_pictures(folder: Path, numbers: set[int]) -> None:
    assert {path.name for path in folder.iterdir()} == {f"figure{n}.png" for n in numbers}
    for path in folder.iterdir():
        content = path.read_bytes()
        assert content.startswith(PNG)
        assert len(content) > SMALLEST_PICTURE


@pytest.mark.slow
def test_figures_of_circuits_need_no_images(run_figures: Run, tmp_path: Path) -> None:
    status, output, errors = run_figures("--figures", 1, 3, 4, "--circuits", 20)
    assert (status, errors) == (0, "")
    assert "images:" not in output
    check_pictures(tmp_path / "runs" / "paper_figures", {1, 3, 4})
    assert output.count("stable at y = ") == 2 * 3 + 2 + 3
    assert output.count("unstable at y = ") == 2
    assert "20 of 20 circuits settle in a simulation" in output


@pytest.mark.slow
def test_figures_of_models(run_figures: Run, shared_images: Path, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    options = ["--data", shared_images, "--out", out, "--epochs", 1]
    status, output, errors = run_figures("--figures", 7, 5, 6, *options)
    assert (status, errors) == (0, "")
    assert output.count("images: a part of MNIST") == 1
    check_pictures(out, {5, 6, 7})
    assert output.count("100 of 100 test inputs stable") == 2
    assert "recorded is 98.67% on mnist, which are other images" in output
    assert "epoch 1/1" in output
    assert "states bounded along 100 of 100 test images" in output
    assert "the paper has 128 units and 784 steps" in output


@pytest.mark.usefixtures("empty_portraits")
def test_figures_are_replaced(run_figures: Run, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    out.mkdir()
    (out / "figure3.png").write_text("old")
    (out / "notes.txt").write_text("mine")
    assert run_figures("--figures", 3, "--out", out)[0] == 0
    assert (out / "figure3.png").read_bytes().startswith(PNG)
    assert (out / "notes.txt").read_text() == "mine"


def test_the_fixed_points_are_those_of_figure_1() -> None:
    verdicts = [
        sorted(point.stable for point in find_fixed_points(portrait.circuit))
        for portrait in recurrence_portraits()
    ]
    only = [True]
    assert verdicts == [only, [False, False, True], only, only, only, only]


@pytest.mark.parametrize("portrait", [*recurrence_portraits(), *time_constant_portraits()])
def test_fixed_points_rest_where_they_are_seen(portrait: Portrait) -> None:
    for point in find_fixed_points(portrait.circuit):
        y, a = torch.tensor([[point.y], [point.a]], dtype=torch.float64)
        for speed in portrait.circuit.vector_field(y, a):
            assert abs(float(speed)) < 1e-12
        assert point.stable == (point.leading.real < 0)
        assert portrait.y[0] < point.y < portrait.y[1]
        assert portrait.a[0] < point.a < portrait.a[1]


def test_time_constants_leave_the_fixed_point_of_figure_3_where_it_is() -> None:
    fixed_points = [find_fixed_points(portrait.circuit) for portrait in time_constant_portraits()]
    assert [len(points) for points in fixed_points] == [1, 1, 1]
    expected = 0.5 / 0.2525**0.5, 0.2525  # Eq. 4
    for (point,) in fixed_points:
        assert point.stable
        assert (point.y, point.a) == pytest.approx(expected)
    assert len({round(point.leading.real, 3) for (point,) in fixed_points}) == 3


@pytest.mark.slow
def test_algorithm_1_approaches_what_simulation_finds() -> None:
    circuits = settle_circuits(20, torch.Generator().manual_seed(1))
    assert circuits.unsettled == 0
    assert circuits.largest_real_part() < 0
    torch.testing.assert_close(
        torch.linalg.matrix_norm(circuits.problem.recurrent_matrix(), 2),
        torch.ones(20, dtype=torch.float64),
    )
    states = iterate(solve_algorithm1, circuits.problem, ITERATIONS)
    mean = (states - circuits.state).norm(dim=-1).mean(-1)
    assert mean[5] < 1e-3 * mean[0]
    assert mean[15] < 1e-3 * mean[5]


@pytest.mark.slow
def test_every_epoch_is_watched_on_the_test_images(shared_images: Path) -> None:
    history, used = train_and_watch(load_mnist(shared_images), seed=0, epochs=2)
    assert [entry["epoch"] for entry in history] == [0, 1, 2]
    assert len(used.test) == 100
    for entry in history:
        assert entry["largest_1"] < 0
        assert entry["largest_2"] < 0
        assert entry["stable_1"] == entry["stable_2"] == 1


def test_shipped_sequence_models_are_found_in_order() -> None:
    permuted = [model.permuted for model in load_sequence_models()]
    assert permuted == sorted(permuted)
    assert False in permuted


def test_missing_weights_are_one_error(tmp_path: Path) -> None:
    with pytest.raises(ExampleError, match="holds no weights of circuits"):
        load_sequence_models(tmp_path)


@pytest.mark.slow
def test_it_says_which_weights_are_not_shipped(
    run_figures: Run, shared_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpermuted = [model for model in load_sequence_models() if not model.permuted]
    monkeypatch.setattr(hidden_states, "load_sequence_models", lambda: unpermuted)
    status, output, _ = run_figures("--figures", 7, "--data", shared_images)
    assert status == 0
    assert "no permuted weights are shipped" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--figures", 1, 2), "--figures is 2; expected some of 1, 3, 4, 5, 6, 7"),
        (("--seed", -1), "--seed is -1; expected 0 at least"),
        (("--circuits", 1), "--circuits is 1; expected 2 at least"),
        (("--epochs", 0), "--epochs is 0; expected 1 at least"),
        (("--data", "nowhere"), "--data nowhere is not a directory"),
    ],
)
def test_a_wrong_option_is_one_error(
    options: tuple[object, ...], message: str, run_figures: Run, tmp_path: Path
) -> None:
    status, _, errors = run_figures(*options)
    assert status == 2
    assert errors.startswith(f"error: {message}")
    assert errors.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_file_is_no_folder(run_figures: Run, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    status, _, errors = run_figures("--figures", 1, "--out", file)
    assert status == 2
    assert errors.startswith(f"error: --out {file} cannot be made a folder")
    assert file.read_text() == "mine"


@pytest.mark.usefixtures("empty_portraits")
def test_a_picture_is_written_whole_or_not_at_all(
    run_figures: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Figure, file: object, **options: object) -> None:
        raise OSError("no space left")

    path = tmp_path / "figure3.png"
    save(Figure(), path)
    before = path.read_bytes()
    monkeypatch.setattr(Figure, "savefig", fail)
    status, _, errors = run_figures("--figures", 3, "--out", tmp_path)
    assert status == 2
    assert errors == f"error: --out: {path} cannot be written (no space left)\n"
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["figure3.png"]
