"""The examples as modules, and small directories of images."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from _images import write_images
from _runs import EXAMPLES as MODULES
from _runs import short_run

import smnist_bptt
import static_mnist
from program.errors import run_example


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A directory for `--data` that a test may damage."""
    return write_images(tmp_path / "images")


@pytest.fixture(scope="session")
def shared_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for `--data` that no test changes."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def finished_run(
    tmp_path_factory: pytest.TempPathFactory, shared_images: Path
) -> Callable[[str], Path]:
    """Gives the folder of a short run of an example, which no test changes."""

    @functools.cache
    def run(example: str) -> Path:
        folder = tmp_path_factory.mktemp("finished") / "run"
        folders = ["--data", str(shared_images), "--out", str(folder)]
        MODULES[example].main([*short_run(example), *folders])
        return folder

    return run


RunExample = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_main(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> RunExample:
    """Runs an example in this process, in an empty folder: exit status, output, errors."""
    monkeypatch.chdir(tmp_path)

    def run(main: Callable[[list[str]], None], *arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = run_example(lambda: main([str(value) for value in arguments]))
        return status, *capfd.readouterr()

    return run


@pytest.fixture
def run_static(run_main: RunExample) -> RunExample:
    """Runs static_mnist.py."""
    return functools.partial(run_main, static_mnist.main)


@pytest.fixture
def run_sequence(run_main: RunExample) -> RunExample:
    """Runs smnist_bptt.py."""
    return functools.partial(run_main, smnist_bptt.main)
