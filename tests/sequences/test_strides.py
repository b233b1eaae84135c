"""How a tensor lies in memory changes nothing: input, states, output gradients, parameters."""

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from _kernels import DEVICE, SINGLE
from _oracle import oracle
from torch import Tensor, nn

from recurrent import ORGaNICsCell, ORGaNICsRNN, State, check_trajectory

pytestmark = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
FAST: dict[str, Any] = {"max_step_y": 0.3, "max_step_a": 0.2, "max_step_b": 0.4}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"rectified": False, "recurrence": "spectral"},
    {"rectifier": "after_weights", "readout": "rates"},
    {"recurrence": "identity", "learn_time_constants": False},
    {"input_gain": "fixed", "num_layers": 2, "semisaturation": 0.6},
]


def transposed(values: Tensor, draw: random.Random) -> Tensor:
    order = draw.sample(range(values.ndim), values.ndim)
    back = [order.index(place) for place in range(values.ndim)]
    return values.permute(order).contiguous().permute(back)


def strided(values: Tensor, draw: random.Random) -> Tensor:
    wide = values.new_full([2 * size + 1 for size in values.shape], torch.nan)
    part = wide[tuple(slice(1, 2 * size + 1, 2) for size in values.shape)]
    return part.copy_(values)


def narrowed(values: Tensor, draw: random.Random) -> Tensor:
    place = draw.randrange(values.ndim)
    wide = torch.cat([torch.full_like(values, torch.nan), values.flip(place)], place)
    return wide.flip(place).narrow(place, 0, values.shape[place])


def expanded(values: Tensor, draw: random.Random) -> Tensor:
    kept = draw.sample(range(values.ndim), draw.randrange(values.ndim))
    index = tuple(slice(None) if place in kept else slice(0, 1) for place in range(values.ndim))
    return values[index].expand(values.shape)


def negated(values: Tensor, draw: random.Random) -> Tensor:
    """With a minus that is still to be done, as the conjugate's imaginary part has it."""
    return torch.complex(values, -values).conj().imag


def as_it_is(values: Tensor, draw: random.Random) -> Tensor:
    return values


LAYOUTS = [as_it_is, transposed, strided, narrowed, expanded, negated]


def laid_out(values: Tensor, draw: random.Random) -> Tensor:
    layout = draw.choice(LAYOUTS)
    return layout(values.detach().clone(), draw).detach()


def test_the_layouts_lie_as_they_say() -> None:
    values, draw = torch.rand(4, 3, 5), random.Random(0)
    for layout in (transposed, strided, narrowed, negated):
        torch.testing.assert_close(layout(values, draw), values, rtol=0, atol=0)
    assert not strided(values, draw).is_contiguous()
    assert 0 in expanded(values, draw).stride()
    assert negated(values, draw).is_neg()


def derivatives(
    run: Callable[..., tuple[Tensor, State]],
    parameters: dict[str, Tensor],
    x: Tensor,
    state: State,
    weights: Sequence[Tensor | None],
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Results, and the gradients of their weighted sum, without those whose weights are None."""
    leaves = {"x": x, **state._asdict(), **parameters}
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    state = State(*(leaves[name] for name in State._fields))
    output, last = run({name: leaves[name] for name in parameters}, leaves["x"], state)
    values = [output, *last]
    used = [(v, w) for v, w in zip(values, weights, strict=True) if w is not None]
    results, given = zip(*used, strict=True)
    found = torch.autograd.grad(results, list(leaves.values()), given, materialize_grads=True)
    return values, dict(zip(leaves, found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_results_and_gradients_are_those_of_a_plain_loop(backend: str, seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    dtype = torch.float32 if backend in SINGLE else torch.float64
    steps, batch, features, n = (draw.randint(1, most) for most in (5, 5, 3, 7))
    rnn = ORGaNICsRNN(
        features,
        n,
        batch_first=draw.random() < 0.5,
        backend=backend,
        dtype=dtype,
        **FAST,
        **OPTIONS[seed % len(OPTIONS)],
    ).to(DEVICE)
    lead = (batch, steps) if rnn.batch_first else (steps, batch)
    tensors = [
        torch.randn(*lead, features),
        *torch.randn(4, rnn.num_layers, batch, n),
        torch.randn(*lead, n),
        *torch.randn(4, rnn.num_layers, batch, n),
    ]
    x, *rest = (laid_out(tensor.to(DEVICE, dtype), draw) for tensor in tensors)
    state = State(*rest[:4])
    weights: list[Tensor | None] = [*rest[4:]]
    for place in draw.sample(range(5), draw.randrange(5)):
        weights[place] = None
    parameters = {
        name: laid_out(value + 0.3 * torch.randn_like(value), draw)
        for name, value in rnn.named_parameters()
    }

    def library(parameters: dict[str, Tensor], x: Tensor, state: State) -> tuple[Tensor, State]:
        return torch.func.functional_call(rnn, parameters, (x, state))

    def plain_loop(parameters: dict[str, Tensor], x: Tensor, state: State) -> tuple[Tensor, State]:
        twin = copy.deepcopy(rnn).double()
        for name, value in parameters.items():
            owner, _, part = name.rpartition(".")
            own: dict[str, Any] = twin.get_submodule(owner)._parameters
            del own[part]
            own[part] = value
        output, last = oracle(twin, x.transpose(0, 1) if rnn.batch_first else x, state)
        return output.transpose(0, 1) if rnn.batch_first else output, last

    def contiguous(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.clone(memory_format=torch.contiguous_format)

    def double(tensor: Tensor | None) -> Any:
        return None if tensor is None else contiguous(tensor).double().cpu()

    got, found = derivatives(library, parameters, x, state, weights)
    rnn = rnn.cpu()
    expected, exact = derivatives(
        plain_loop,
        {name: double(value) for name, value in parameters.items()},
        double(x),
        State(*map(double, state)),
        list(map(double, weights)),
    )
    tolerance = 2e-5 if backend in SINGLE else 1e-10
    for value, known in zip(got, expected, strict=True):
        assert (value.cpu() - known).norm() <= tolerance * (1 + known.norm())
    for name, known in exact.items():
        assert (found[name].cpu() - known).norm() <= tolerance * (1 + known.norm()), name


def test_input_gradient_of_an_encoder_with_batch_first() -> None:
    rnn = ORGaNICsRNN(3, 8, batch_first=True)
    encoder, x = nn.Linear(4, 3), torch.rand(5, 9, 4)
    gradients = []
    for rnn.backend in ("auto", "reference"):
        loss = rnn(encoder(x))[0].square().sum()
        gradients.append(torch.autograd.grad(loss, list(encoder.parameters())))
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_cell_and_trajectory() -> None:
    cell, draw = ORGaNICsCell(3, 4, dtype=torch.float64), random.Random(0)
    x, state = torch.rand(6, 2, 3).double(), State(*torch.rand(4, 2, 4).double())
    step, report = cell(x[0], state), check_trajectory(cell, x, state)
    for layout in (transposed, strided, narrowed, negated):
        there = State(*(layout(part, draw) for part in state))
        for got, expected in zip(cell(layout(x[0], draw), there), step, strict=True):
            torch.testing.assert_close(got, expected)
        again = check_trajectory(cell, layout(x, draw), there)
        torch.testing.assert_close(again.spectral_radius, report.spectral_radius)
