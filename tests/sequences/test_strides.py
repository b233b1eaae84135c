"""How a tensor lies in memory changes nothing: input, states, output gradients, parameters."""

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from _kernels import DEVICE, SINGLE
from _layouts import expanded, laid_out, narrowed, negated, negative, strided, transposed
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


def test_the_layouts_lie_as_they_say() -> None:
    values, draw = torch.rand(4, 3, 5), random.Random(0)
    for layout in (transposed, strided, narrowed, negated, negative):
        torch.testing.assert_close(layout(values, draw), values, rtol=0, atol=0)
    assert not strided(values, draw).is_contiguous()
    assert 0 in expanded(values, draw).stride()
    assert negated(values, draw).is_neg()
    assert negative(values, draw).is_neg()
    assert negative(values, draw).is_contiguous()


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
    for layout in (transposed, strided, narrowed, negated, negative):
        there = State(*(layout(part, draw) for part in state))
        for got, expected in zip(cell(layout(x[0], draw), there), step, strict=True):
            torch.testing.assert_close(got, expected)
        again = check_trajectory(cell, layout(x, draw), there)
        torch.testing.assert_close(again.spectral_radius, report.spectral_radius)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"recurrence": "identity", "input_gain": "fixed"}])
def test_hooks_may_keep_what_is_saved_in_other_strides(
    backend: str, options: dict[str, Any]
) -> None:
    """As one does that moves saved tensors to a file and reads them into memory of its own."""

    def unpack(values: Tensor) -> Tensor:
        return values if values.ndim == 0 else strided(values, random.Random(0))

    rnn = ORGaNICsRNN(2, 5, backend=backend, **FAST, **options).to(DEVICE)
    x, leaves = torch.rand(3, 4, 2, device=DEVICE), list(rnn.parameters())
    state = rnn.draw_state(4)
    plainly = torch.autograd.grad(rnn(x, state)[0].sum(), leaves, materialize_grads=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda values: values, unpack):
        output, _ = rnn(x, state)
    found = torch.autograd.grad(output.sum(), leaves, materialize_grads=True)
    for one, other in zip(found, plainly, strict=True):
        torch.testing.assert_close(one, other)
