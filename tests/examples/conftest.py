"""The examples as modules, and small directories of images."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import static_mnist  # noqa: E402
from _errors import run_example  # noqa: E402
from _images import write_images  # noqa: E402


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A directory for `--data` that a test may damage."""
    return write_images(tmp_path / "images")


@pytest.fixture(scope="module")
def shared_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for `--data` that no test of the module changes."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def run_static(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs static_mnist.py in this process, in an empty folder: exit status, output, errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = run_example(lambda: static_mnist.main([str(value) for value in arguments]))
        return status, *capfd.readouterr()

    return run
