"""Fixtures for the tests of the core.

A test function is marked `slow` where a case takes more than 0.3 s of a core, all its cases more
than 0.5 s, or where it starts another Python. A file of such tests has the mark in `pytestmark`.
Every room keeps some that are quick.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads it when it is imported, which torch does for itself.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from _circuits import DOUBLE, random_parameters
from torch import Tensor

from deq_organics import Circuit

if TYPE_CHECKING:
    # mypy checks what it imports; pytest finds these by itself.
    import tests.examples.conftest
    import tests.sequences.conftest  # noqa: F401


def pytest_configure() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def parameters() -> Callable[..., dict[str, Any]]:
    """Factory of a random circuit's arguments."""
    return random_parameters


@pytest.fixture
def circuit() -> Callable[..., Circuit]:
    """Factory of random circuits."""
    return lambda *args, **options: Circuit(**random_parameters(*args, **options))


@pytest.fixture
def counterexample() -> Callable[..., Circuit]:
    """A circuit without a stable fixed point: n = 1, wr = -1, d = w = 1, c = 1/2."""

    def build(batch: int = 1, dtype: torch.dtype = DOUBLE) -> Circuit:
        one = torch.ones(1, 1, dtype=dtype)
        return Circuit(one.expand(batch, 1).clone(), 0.5, -one, one)

    return build


@pytest.fixture
def any_state() -> Callable[..., tuple[Tensor, Tensor]]:
    """Factory of states that are no fixed points, with ``a > 0``."""

    def build(circuit: Circuit, seed: int = 1) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shape = (*circuit.batch_shape, circuit.n)
        y = torch.randn(shape, generator=generator, dtype=circuit.input_drive.dtype)
        a = torch.rand(shape, generator=generator, dtype=circuit.input_drive.dtype) + 0.1
        return y, a

    return build
