"""Where in time a field is evaluated: within its piece and within the times that are asked for."""

import math

import pytest
import torch
from _circuits import DOUBLE, vector
from torch import Tensor

from deq_organics import Circuit, simulate
from deq_organics.integration import Pieces


class Recorder:
    """A field that says at which times it is evaluated."""

    def __call__(self, time: Tensor, state: Tensor) -> Tensor:
        return time.unsqueeze(-1)

    def jacobian(self, time: Tensor, state: Tensor) -> Tensor:
        return time[:, None, None]

    def select(self, index: Tensor) -> "Recorder":
        return self


@pytest.mark.parametrize("seed", range(20))
def test_times_inside_of_a_piece_stay(seed: int) -> None:
    """Of pieces with edges over 24 decades only a few roundings beside their edges are moved."""
    generator = torch.Generator().manual_seed(seed)
    size = 10.0 ** (24 * torch.rand(6, dtype=DOUBLE, generator=generator) - 12)
    sign = torch.where(torch.rand(6, generator=generator) < 0.3, -1.0, 1.0)
    edges = torch.cat([size * sign, vector(0.0)[: seed % 2]]).sort().values
    if seed % 5 == 0:
        edges = edges[:0]
    first, last = -vector(1e13)[0], vector(1e13)[0]
    pieces = Pieces(edges.unsqueeze(0), first, last)
    ends = torch.cat([first[None], edges, last[None]])
    for number in range(len(ends) - 1):
        low, high = ends[number], ends[number + 1]
        piece = pieces.at(low.expand(1))
        field = pieces.confine(Recorder(), piece)

        def seen(time: Tensor) -> Tensor:
            return field(time.expand(1), torch.zeros(1, 1))[0, 0]  # noqa: B023

        room = 2.0**-40 * torch.maximum(low.abs(), (high - low) * (low == 0))
        parts = [
            low + room,
            high - 2.0**-40 * torch.maximum(high.abs(), (high - low) * (high == 0)),
        ]
        parts.extend(low + part * (high - low) for part in (1e-9, 1e-3, 0.5, 0.999))
        for time in parts:
            if low + room <= time <= parts[1]:
                assert seen(time) == time
        for time in (low, high, low - 1.0, high + 1.0):
            moved = seen(time)
            assert low <= moved <= high
            # An edge itself belongs to both pieces: the field is asked for strictly inside.
            assert moved > low or number == 0
            assert moved < high or number == len(ends) - 2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "rodas5p", "rk4", "scipy_solver"])
@pytest.mark.parametrize("jumps", [(), (0.3,)])
def test_a_drive_is_asked_for_within_the_times_alone(method: str, jumps: tuple[float, ...]) -> None:
    """A table that ends at the last time is no error: rounding goes beyond it otherwise."""
    circuit = Circuit(torch.ones(1, dtype=DOUBLE), 0.5, None, torch.ones(1, 1, dtype=DOUBLE))
    for first, last in ((0.1, 0.7), (1.0 / 3.0, 0.9), (math.pi / 7, 2.2)):
        asked: list[float] = []

        def drive(time: Tensor) -> Tensor:
            asked.extend(time.detach().flatten().tolist())  # noqa: B023
            return 1.0 + time

        times = torch.linspace(first, last, 4, dtype=DOUBLE)
        simulate(circuit, times, input_drive=drive, jumps=jumps, method=method, rtol=1e-3)
        assert float(times[0]) <= min(asked)
        assert max(asked) <= float(times[-1])


@pytest.mark.slow
def test_what_happens_right_after_a_jump_is_seen_before_a_far_end() -> None:
    """A drive that fades within 1e-5 of a jump at 1e-6, in a simulation until 1e9."""
    weights = torch.zeros(1, 1, dtype=DOUBLE)
    circuit = Circuit(torch.ones(1, dtype=DOUBLE), 0.25, weights, weights, 1e-5, 1e-5)
    jump, fade = 1e-6, 1e-5

    def pulse(time: Tensor) -> Tensor:
        return torch.where(time >= jump, (-(time - jump) / fade).exp(), 0.0)

    times = vector(0.0, jump + fade, 1e9)
    found = simulate(
        circuit,
        times,
        input_drive=pulse,
        jumps=[jump],
        method="rodas5p",
        rtol=1e-8,
        options={"first_step": 1e-7},
    )
    # y' = (-y + exp(-s)) with s in units of the time constant: y = s exp(-s).
    assert float(found.y[1, 0]) == pytest.approx(math.exp(-1.0), rel=1e-3)


@pytest.mark.parametrize("count", [2, 40])
def test_of_jumps_at_one_time_the_first_has_the_gradient(count: int) -> None:
    jumps = torch.full((count,), 0.5, dtype=DOUBLE, requires_grad=True)
    circuit = Circuit(torch.ones(1, dtype=DOUBLE), 0.5, None, torch.ones(1, 1, dtype=DOUBLE))
    found = simulate(
        circuit,
        vector(0.0, 1.0),
        input_drive=lambda t: torch.where(t >= 0.5, 2.0, 1.0).double(),
        jumps=jumps,
        rtol=1e-3,
    )
    (gradient,) = torch.autograd.grad(found.y[-1].sum(), jumps)
    assert gradient[0] != 0
    assert (gradient[1:] == 0).all()
