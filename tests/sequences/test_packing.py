"""Sequences of different lengths, packed, are each sequence alone."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from _kernels import DEVICE, FIRST_ON_CPU, SINGLE
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, unpack_sequence

from recurrent import ORGaNICsRNN, State

pytestmark = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
FAST: dict[str, Any] = {"max_step_y": 0.3, "max_step_a": 0.2, "max_step_b": 0.4}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "recurrence": "spectral"},
    {"readout": "rates", "input_gain": "fixed"},
    {"rectified": False, "num_layers": 3},
]


def packed_rows(rows: list[Tensor], draw: random.Random) -> tuple[PackedSequence, list[int]]:
    """One of the ways to pack them, and the order in which they went in."""
    if draw.random() < 0.5:
        return pack_sequence(rows, enforce_sorted=False), list(range(len(rows)))
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    return pack_sequence([rows[i] for i in order]), order


def weighted_gradients(results: Sequence[Tensor], leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(r.shape, generator=generator).to(r) for r in results]
    total: Any = sum((r * w).sum() for r, w in zip(results, weights, strict=True))
    return torch.autograd.grad(total, leaves, materialize_grads=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_each_sequence_is_as_if_it_were_alone(backend: str, seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    dtype = torch.float32 if backend in SINGLE else torch.float64
    options: dict[str, Any] = {**OPTIONS[seed % len(OPTIONS)], "batch_first": draw.random() < 0.5}
    rnn = ORGaNICsRNN(2, 4, backend=backend, dtype=dtype, device=DEVICE, **FAST, **options)
    # Triton's interpreter is slow.
    longest, most = (2, 3) if backend == "cuda" else (6, 5)
    lengths = [draw.randint(1, longest) for _ in range(draw.randint(1, most))]
    factory: dict[str, Any] = {"dtype": dtype, "device": DEVICE}
    rows = [torch.rand(length, 2, **factory, requires_grad=True) for length in lengths]
    given = seed % 3 > 0
    parts = torch.rand(4, rnn.num_layers, len(rows), 4, **factory).requires_grad_(given)
    packed, order = packed_rows(rows, draw)
    state = State(*parts[:, :, order]) if given else None
    output, last = rnn(packed, state)

    assert isinstance(output, PackedSequence)
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        known = getattr(packed, name)
        assert getattr(output, name) is known or torch.equal(getattr(output, name), known)
    outputs = unpack_sequence(output)
    leaves = [*rows, *rnn.parameters(), *([parts] if given else [])]
    rnn.backend = "reference"
    alone = [rnn(rows[i], State(*parts[:, :, i]) if given else None) for i in order]
    results = [*outputs, *last]
    expected = [
        *(each for each, _ in alone),
        *(torch.stack(part, 1) for part in zip(*(end for _, end in alone), strict=True)),
    ]
    tolerance: dict[str, Any] = (
        {"rtol": 1e-4, "atol": 1e-6} if backend in SINGLE else {"rtol": 1e-9, "atol": 1e-12}
    )
    for got, known in zip(results, expected, strict=True):
        torch.testing.assert_close(got, known, **tolerance)
    found, exact = weighted_gradients(results, leaves), weighted_gradients(expected, leaves)
    for got, known in zip(found, exact, strict=True):
        torch.testing.assert_close(got, known, **tolerance)


@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_conventions_are_those_of_torch(enforce_sorted: bool) -> None:
    lengths = torch.tensor([5, 3, 3, 1] if enforce_sorted else [3, 1, 5, 3])
    x = torch.rand(4, 5, 3)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=enforce_sorted)
    ours, theirs = ORGaNICsRNN(3, 6, 2), nn.RNN(3, 6, 2)
    output, last = ours(packed, ours.draw_state(4))
    expected, hidden = theirs(packed, torch.rand(2, 4, 6))
    assert [part.shape for part in last] == [hidden.shape] * 4
    assert output.data.shape == expected.data.shape
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        left, right = getattr(output, name), getattr(expected, name)
        assert left is right or torch.equal(left, right)
    padded, _ = nn.utils.rnn.pad_packed_sequence(output, batch_first=True)
    torch.testing.assert_close(padded[range(4), lengths - 1], last.y[-1])
    choice = ours.backend_for(packed)
    assert choice.backend.name == FIRST_ON_CPU


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    rows = [torch.rand(length, 3).to(dtype) for length in (4, 7, 2)]
    rnn = ORGaNICsRNN(3, 5, dtype=dtype)
    output, last = rnn(pack_sequence(rows, enforce_sorted=False))
    assert output.data.dtype == dtype
    for i, row in enumerate(rows):
        alone, end = rnn(row)
        torch.testing.assert_close(unpack_sequence(output)[i], alone)
        torch.testing.assert_close(last.a[:, i], end.a)


def test_bad_arguments() -> None:
    rnn = ORGaNICsRNN(3, 5)
    rows = [torch.rand(length, 3) for length in (4, 2)]
    packed = pack_sequence(rows)
    for data, error, message in (
        (packed.data[:, :2], ValueError, r"x: got shape \(6, 2\), expected \(rows, 3\)"),
        (packed.data.double(), ValueError, "x: got torch.float64"),
        (packed.data.long(), TypeError, "x: got dtype torch.int64"),
        (packed.data.index_fill(0, torch.tensor([5]), torch.nan), ValueError, "x: got 3 NaN"),
    ):
        with pytest.raises(error, match=message):
            rnn(PackedSequence(data, packed.batch_sizes))
    for sizes in ([2, 2, 1], [1, 1, 2, 2], []):
        with pytest.raises(ValueError, match=r"x\.batch_sizes: got .* expected at least one"):
            rnn(PackedSequence(packed.data, torch.tensor(sizes, dtype=torch.int64)))
    with pytest.raises(ValueError, match=r"state\.y: got shape \(1, 3, 5\), expected \(1, 2, 5\)"):
        rnn(packed, rnn.draw_state(3))
