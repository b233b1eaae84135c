"""What both trained examples refuse: options, other runs' folders, and damaged weights."""

import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pytest
import safetensors.torch
import torch
from _runs import EXAMPLES, rewrite, short_run

from deq_organics import ORGaNICsDEQ

Run = Callable[..., tuple[int, str, str]]
Damage = Callable[[Path, str], None]

DEFAULT_RUNS = {"static_mnist": "80-80-seed0", "smnist_bptt": "organics-64-14x14-seed0"}
OTHER = {"static_mnist": "smnist_bptt", "smnist_bptt": "static_mnist"}
SHIPPED = {"static_mnist": "50-50", "smnist_bptt": "organics-64-14x14"}


def with_evaluate(*names: str) -> list[tuple[list[str], str]]:
    """Options that have no meaning beside --evaluate, each with a value of its own."""
    return [
        (["--evaluate", "x", *name.split()], f"{name.split()[0]} has no meaning with --evaluate")
        for name in names
    ]


REFUSED = [
    (["--epochs", "0"], "--epochs is 0; expected 1 at least"),
    (["--epochs", "-3"], "--epochs is -3; expected 1 at least"),
    (["--seed", "-1"], "--seed is -1; expected 0 at least"),
    (["--limit", "0"], "--limit is 0; expected 1 to 570 images"),
    (["--limit", "571"], "--limit is 571; expected 1 to 570 images"),
    (["--limit", "1000"], "--limit is 1000; expected 1 to 570 images"),
    (["--data", "nowhere"], "--data nowhere is not a directory"),
    (["--data", "."], "--data . lacks train-images-idx3-ubyte"),
    (["--out", "images"], "--out images already holds MNIST"),
    (["--out", "images/MNIST/raw/t10k-images-idx3-ubyte"], "cannot be made a folder"),
    (["--evaluate", "90:90"], "--evaluate 90:90 is neither a file nor the name of shipped"),
    (["--evaluate", "gru"], "--evaluate gru is neither a file nor the name of shipped"),
    (["--evaluate", "images"], "--evaluate images is neither a file nor the name of"),
    *with_evaluate("--resume", "--epochs 3", "--out there"),
]
REFUSED_BY = {
    "static_mnist": with_evaluate("--model 80:80"),
    "smnist_bptt": [
        (["--resize", "0"], "--resize is 0; expected 1 to 28"),
        (["--resize", "29"], "--resize is 29; expected 1 to 28"),
        (["--hidden-size", "0"], "--hidden-size is 0; expected 1 at least"),
        (["--hidden-size", "-4"], "--hidden-size is -4; expected 1 at least"),
        (
            ["--model", "lstm", "--fixed-time-constants"],
            "--fixed-time-constants has no meaning with --model lstm",
        ),
        *with_evaluate(
            "--model lstm", "--hidden-size 3", "--resize 14", "--permuted", "--preset quick"
        ),
    ],
}

UNPARSABLE = [
    (["--epochs", "1e3"],),
    (["--epochs", "many"],),
    (["--device", "tpu"],),
    (["--learning-rate", "0.1"],),
    (["--clip", "1"],),
]
UNPARSABLE_BY = {
    "static_mnist": [(["--model", "100:100"],)],
    "smnist_bptt": [
        (["--model", "gru"],),
        (["--preset", "slow"],),
        (["--hidden-size", "64.0"],),
        (["--resize", "14x14"],),
    ],
}

OTHER_RUNS = [
    (["--seed", "1"], "seed is 0 there and 1 here"),
    (["--epochs", "3"], "epochs is 2 there and 3 here"),
    (["--limit", "64"], "training images is 128 there and 64 here"),
]
OTHER_RUNS_BY = {
    "static_mnist": [(["--model", "80:80"], "model is '50:50' there and '80:80' here")],
    "smnist_bptt": [
        (["--model", "lstm"], "model is 'organics' there and 'lstm' here"),
        (["--hidden-size", "5"], "hidden_size is 4 there and 5 here"),
        (["--resize", "5"], "resize is 4 there and 5 here"),
        (["--preset", "paper"], "batch_size is "),
        (["--permuted"], "permuted is False there and True here"),
        (["--fixed-time-constants"], "fixed_time_constants is False there and True here"),
    ],
}


def truncate(file: Path, _: str) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path, _: str) -> None:
    file.write_bytes(b"")


def spoil(file: Path, example: str) -> None:
    rewrite(file, example, {}, **{"readout.bias": torch.full((10,), math.nan)})


def extend(file: Path, example: str) -> None:
    rewrite(file, example, {}, another=torch.zeros(1))


def with_another_exponent(file: Path, _: str) -> None:
    weights = {"layers.0._extra_state": ORGaNICsDEQ(1, 1, exponent=3.0).get_extra_state()}
    rewrite(file, "static_mnist", {}, **weights)


def replace_by_foreign(file: Path, _: str) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(1)}, file)


def attribute_to_other(file: Path, example: str) -> None:
    rewrite(file, example, {"example": OTHER[example]})


def replace_by_other(file: Path, example: str) -> None:
    other = OTHER[example]
    shutil.copy(EXAMPLES[other].SHIPPED_WEIGHTS / f"{SHIPPED[other]}.safetensors", file)


def described_as(**changes: object) -> Damage:
    """Other metadata than the weights'."""

    def describe(file: Path, example: str) -> None:
        rewrite(file, example, changes)

    return describe


DAMAGES: list[tuple[Damage, str]] = [
    (truncate, "cannot be read"),
    (empty, "cannot be read"),
    (spoil, "has values that are not finite in readout.bias"),
    (extend, 'does not fit the model: Unexpected key(s) in state_dict: "another"'),
    (replace_by_foreign, "was written by None; expected '{example}'"),
    (attribute_to_other, "was written by '{other}'; expected '{example}'"),
    (replace_by_other, "was written by '{other}'; expected '{example}'"),
]
DAMAGES_BY: dict[str, list[tuple[Damage, str]]] = {
    "static_mnist": [
        (with_another_exponent, "layers.0.exponent: saved with 3.0, here 2.0"),
        (described_as(model="80:80"), "does not fit the model: size mismatch for"),
        (
            described_as(model="7:7"),
            "is of model '7:7'; expected one of 80:80, 50:50, two-layer, mlp-50",
        ),
    ],
    "smnist_bptt": [
        (described_as(hidden_size=5), "does not fit the model: size mismatch for"),
        (described_as(model="lstm"), "does not fit the model: Missing key(s)"),
        (described_as(model="gru"), "describes no model (model is 'gru'; expected"),
        (described_as(resize=0), "describes no model (resize is 0; expected"),
        (described_as(hidden_size="four"), "describes no model (hidden_size"),
        (described_as(permuted=None), "describes no model (permuted is None; expected"),
        (described_as(recipe={}), "describes no model ("),
    ],
}


def for_each(
    common: Iterable[tuple[object, ...]], own: Mapping[str, Sequence[tuple[object, ...]]]
) -> list[tuple[object, ...]]:
    """The cases of both examples, and those of each, behind the example's name."""
    both = [(example, *case) for example in EXAMPLES for case in common]
    return [*both, *((example, *case) for example, cases in own.items() for case in cases)]


@pytest.mark.slow
@pytest.mark.parametrize(("example", "arguments", "message"), for_each(REFUSED, REFUSED_BY))
def test_bad_options_are_refused(
    run_main: Run, images: Path, example: str, arguments: list[str], message: str
) -> None:
    given = arguments if "--data" in arguments else ["--data", str(images), *arguments]
    status, output, error = run_main(EXAMPLES[example].main, *given, "--device", "cpu")
    assert status == 2
    assert error.startswith("error: ")
    assert message in error
    assert "epoch 1" not in output


@pytest.mark.slow
@pytest.mark.parametrize(("example", "arguments"), for_each(UNPARSABLE, UNPARSABLE_BY))
def test_options_that_cannot_be_parsed_are_refused(
    run_main: Run, example: str, arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        run_main(EXAMPLES[example].main, *arguments)
    assert refusal.value.code == 2


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what is there")
def test_cuda_is_refused_where_there_is_none(run_main: Run, example: str) -> None:
    status, _, error = run_main(EXAMPLES[example].main, "--device", "cuda")
    assert status == 2
    assert "--device is cuda, which this machine's torch cannot use; expected cpu" in error


@pytest.mark.parametrize("example", EXAMPLES)
def test_nothing_is_resumed_where_there_is_nothing(
    run_main: Run, images: Path, example: str
) -> None:
    status, _, error = run_main(
        EXAMPLES[example].main, "--data", images, "--device", "cpu", "--resume"
    )
    assert status == 2
    folder = f"runs/{example}/{DEFAULT_RUNS[example]}"
    assert error.startswith(f"error: --resume found no checkpoint in {folder}")


@pytest.mark.slow
@pytest.mark.parametrize(("example", "change", "message"), for_each(OTHER_RUNS, OTHER_RUNS_BY))
def test_another_run_is_not_resumed(
    run_main: Run,
    shared_images: Path,
    finished_run: Callable[[str], Path],
    example: str,
    change: list[str],
    message: str,
) -> None:
    folders = ["--data", shared_images, "--out", finished_run(example)]
    # Of an option that is given twice the last counts.
    status, _, error = run_main(
        EXAMPLES[example].main, *short_run(example), *change, *folders, "--resume"
    )
    assert status == 2
    assert message in error


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_existing_run_is_not_overwritten(
    run_main: Run, shared_images: Path, finished_run: Callable[[str], Path], example: str
) -> None:
    folders = ["--data", shared_images, "--out", finished_run(example)]
    status, _, error = run_main(EXAMPLES[example].main, *folders, "--device", "cpu")
    assert status == 2
    assert "already holds" in error
    assert "--resume to continue" in error


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_a_finished_run_is_neither_repeated_nor_tested_again(
    run_main: Run, shared_images: Path, finished_run: Callable[[str], Path], example: str
) -> None:
    folder = finished_run(example)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    folders = ["--data", shared_images, "--out", folder]
    status, output, _ = run_main(EXAMPLES[example].main, *short_run(example), *folders, "--resume")
    assert status == 0
    assert "has finished before" in output
    assert "test accuracy" not in output
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("example", "task"), [("static_mnist", "StaticTask"), ("smnist_bptt", "SequenceTask")]
)
def test_an_infinite_loss_ends_the_run(
    run_main: Run, images: Path, monkeypatch: pytest.MonkeyPatch, example: str, task: str
) -> None:
    module = EXAMPLES[example]
    nan = torch.tensor(math.nan, requires_grad=True)
    monkeypatch.setattr(getattr(module, task), "loss", lambda *_: nan)
    status, _, error = run_main(module.main, *short_run(example), "--data", images)
    assert status == 2
    assert "the loss is nan and the norm of its gradient 0.0 in epoch 1" in error


@pytest.mark.slow
@pytest.mark.parametrize(("example", "damage", "message"), for_each(DAMAGES, DAMAGES_BY))
def test_bad_weights_are_refused(
    run_main: Run,
    shared_images: Path,
    finished_run: Callable[[str], Path],
    tmp_path: Path,
    example: str,
    damage: Damage,
    message: str,
) -> None:
    weights = tmp_path / "weights.safetensors"
    shutil.copy(finished_run(example) / "model.safetensors", weights)
    damage(weights, example)
    status, _, error = run_main(
        EXAMPLES[example].main, "--evaluate", weights, "--data", shared_images
    )
    assert status == 2
    assert f"--evaluate {weights}" in error
    assert message.format(example=example, other=OTHER[example]) in error
