"""Small directories of images in torchvision's layout."""

from pathlib import Path

import numpy as np

TRAINING_IMAGES, TEST_IMAGES = 600, 100


def write_idx(path: Path, values: np.ndarray) -> None:
    """Writes unsigned bytes in the idx format."""
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    path.write_bytes(header + values.astype(np.uint8).tobytes())


def write_images(directory: Path) -> Path:
    """Writes four idx files of random digits whose class is visible as a bright row."""
    raw = directory / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part, count in (("train", TRAINING_IMAGES), ("t10k", TEST_IMAGES)):
        labels = generator.integers(0, 10, count)
        images = generator.integers(0, 100, (count, 28, 28))
        images[np.arange(count), 2 * labels] = 255
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels)
    return directory
