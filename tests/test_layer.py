"""`ORGaNICsDEQ` behaves like a module of torch's own."""

import copy
import io
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deq_organics import Circuit, ORGaNICsDEQ

RECURRENCES = ("identity", "spectral", "unconstrained")
GAINS = ("attention", "tied")
VARIANTS = list(itertools.product(RECURRENCES, GAINS))


def make(
    recurrence: str = "spectral",
    gain: str = "attention",
    seed: int = 0,
    sizes: tuple[int, int] = (6, 5),
    **options: Any,
) -> ORGaNICsDEQ:
    """A layer whose recurrent weights are not the identity."""
    torch.manual_seed(seed)
    layer = ORGaNICsDEQ(*sizes, recurrence, gain, **options)
    if recurrence != "identity":
        n, dtype = sizes[1], layer.input_weight.dtype
        matrix = torch.randn(n, n)
        matrix = (0.9 * matrix / torch.linalg.matrix_norm(matrix, 2)).to(dtype)
        with torch.no_grad():
            if recurrence == "spectral":
                layer.recurrent_weight = matrix
            else:
                layer.recurrent_weight.copy_(matrix)
    return layer


@pytest.mark.slow
@pytest.mark.parametrize("lead", [(), (1,), (7,), (2, 3), (2, 1, 4)])
@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_any_leading_dimensions(lead: tuple[int, ...], recurrence: str) -> None:
    layer = make(recurrence)
    x = torch.randn(*lead, 6)
    rates = layer(x)
    assert rates.shape == (*lead, 5)
    assert (rates >= 0).all()
    flat = layer(x.reshape(-1, 6))
    torch.testing.assert_close(rates.reshape(-1, 5), flat, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("recurrence", "gain"), VARIANTS)
@pytest.mark.parametrize("learn", [False, True])
def test_every_parameter_receives_a_gradient(recurrence: str, gain: str, learn: bool) -> None:
    layer = make(recurrence, gain, learn_semisaturation=learn)
    layer(torch.randn(20, 6)).square().sum().backward()
    names = {name for name, _ in layer.named_parameters()}
    assert any("recurrent_weight" in name for name in names) == (recurrence != "identity")
    assert any("gain_weight" in name for name in names) == (gain == "attention")
    assert any("semisaturation" in name for name in names) == learn
    for name, parameter in layer.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_the_circuit_follows_the_paper() -> None:
    layer = make()
    x = torch.randn(4, 6)
    circuit = layer.circuit(x)
    z = x @ layer.input_weight.T
    z = z / z.norm(dim=-1, keepdim=True)
    b = torch.sigmoid(x @ layer.gain_weight.T)
    torch.testing.assert_close(circuit.input_drive, b * z)
    torch.testing.assert_close(circuit.inhibitory_drive, torch.full((5,), 0.25))
    assert torch.equal(circuit.recurrent_weight, layer.recurrent_weight)
    state = layer.steady_state(x)
    assert torch.equal(layer(x), state.rates)
    torch.testing.assert_close(state.rates, state.y.relu() ** 2)


def test_options_of_the_circuit() -> None:
    layer = make(
        "unconstrained",
        "tied",
        exponent=3.0,
        rectified=True,
        tau_y=0.5,
        tau_a=torch.linspace(1, 2, 5),
        semisaturation=0.8,
        normalize_drive=False,
    )
    x = torch.randn(4, 6)
    circuit = layer.circuit(x)
    assert (circuit.exponent, circuit.rectified) == (3.0, True)
    torch.testing.assert_close(circuit.input_drive, 0.5 * (x @ layer.input_weight.T))
    torch.testing.assert_close(circuit.inhibitory_drive, torch.full((5,), 0.4**3))
    assert circuit.tau_y.tolist() == [0.5] * 5
    torch.testing.assert_close(circuit.tau_a, torch.linspace(1, 2, 5))
    assert torch.isfinite(layer(x)).all()


def test_initial_weights() -> None:
    layer = ORGaNICsDEQ(100, 8)
    w = layer.normalization_weight.detach()
    assert torch.equal(layer.recurrent_weight, torch.eye(8))
    torch.testing.assert_close(w.diagonal(), torch.ones(8))
    off = w[~torch.eye(8, dtype=torch.bool)]
    assert (off <= 1).all()
    assert (off >= 0.36).all()
    assert layer.input_weight.abs().max() <= 0.1
    torch.testing.assert_close(layer.baseline_gain.detach(), torch.full((8,), 0.5))


@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_reset_parameters(recurrence: str) -> None:
    layer = make(recurrence, learn_semisaturation=True)
    weights = []
    for _ in range(2):
        torch.manual_seed(1)
        layer.reset_parameters()
        weights.append([p.detach().clone() for p in layer.parameters()])
    assert all(map(torch.equal, *weights))
    torch.manual_seed(1)
    layer.reset_parameters()
    torch.manual_seed(2)
    layer.reset_parameters()
    assert not torch.equal(layer.input_weight, weights[0][0])


def test_construction_is_deterministic() -> None:
    first, second = make(seed=4), make(seed=4)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("recurrence", "gain"), VARIANTS)
def test_state_dict(recurrence: str, gain: str) -> None:
    first = make(recurrence, gain, learn_semisaturation=True, tau_y=0.7)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = make(recurrence, gain, seed=9, learn_semisaturation=True)
    missing, unexpected = second.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert not missing
    assert not unexpected
    x = torch.randn(3, 6)
    assert torch.equal(first(x), second(x))
    assert torch.equal(first.tau_y, second.tau_y)


def test_loading_another_layout_is_refused() -> None:
    with pytest.raises(RuntimeError, match="recurrence: saved with 'spectral', here 'identity'"):
        make("identity").load_state_dict(make("spectral").state_dict())
    state = make("spectral").state_dict()
    del state["_extra_state"]
    with (
        pytest.raises(RuntimeError, match="recurrent_weight"),
        pytest.warns(UserWarning, match="not checked"),
    ):
        make("identity").load_state_dict(state)


def test_deepcopy_is_independent() -> None:
    layer = make()
    other = copy.deepcopy(layer)
    x = torch.randn(3, 6)
    assert torch.equal(layer(x), other(x))
    with torch.no_grad():
        other.input_weight.mul_(-1)
    assert not torch.equal(layer(x), other(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("how", ["argument", "to"])
def test_precisions(dtype: torch.dtype, how: str) -> None:
    layer = make(dtype=dtype) if how == "argument" else make().to(dtype)
    assert all(t.dtype == dtype for t in (*layer.parameters(), *layer.buffers()))
    x = torch.randn(4, 6, dtype=dtype)
    rates = layer(x)
    assert rates.dtype == dtype
    assert layer.steady_state(x).y.dtype == (
        torch.float64 if dtype == torch.float64 else torch.float32
    )
    rates.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


def test_device_argument() -> None:
    assert ORGaNICsDEQ(3, 2, device="cpu").input_weight.device.type == "cpu"
    assert ORGaNICsDEQ(3, 2, device=torch.device("cpu"))(torch.zeros(3)).shape == (2,)


def test_default_dtype_is_respected() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert ORGaNICsDEQ(3, 2).input_weight.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_repr() -> None:
    text = repr(ORGaNICsDEQ(6, 5, "identity", "tied", exponent=3.0, rectified=True))
    for part in ("6, 5", "recurrence='identity'", "input_gain='tied'", "exponent=3.0"):
        assert part in text
    assert "rectified=True" in text
    assert "exponent" not in repr(ORGaNICsDEQ(6, 5))


@pytest.mark.parametrize(("recurrence", "gain"), VARIANTS)
def test_zero_inputs(recurrence: str, gain: str) -> None:
    layer = make(recurrence, gain)
    x = torch.zeros(3, 6, requires_grad=True)
    rates = layer(x)
    assert (rates == 0).all()
    rates.sum().backward()
    assert torch.isfinite(x.grad).all()
    mixed = torch.randn(3, 6)
    mixed[1] = 0
    assert (layer(mixed)[1] == 0).all()
    assert torch.isfinite(layer(mixed)).all()


@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_training_and_evaluation_agree(recurrence: str) -> None:
    layer = make(recurrence)
    x = torch.randn(5, 6)
    first = layer.train()(x)
    second = layer.eval()(x)
    assert torch.equal(first, second)
    assert second.requires_grad
    with torch.inference_mode():
        assert torch.equal(layer(x), first)


def test_an_assigned_weight_is_kept() -> None:
    layer = make(learn_semisaturation=True)
    values = {
        "recurrent_weight": 0.4 * torch.eye(5).flip(0),
        "normalization_weight": torch.rand(5, 5),
        "baseline_gain": torch.full((5,), 0.2),
        "semisaturation": torch.full((5,), 3.0),
    }
    for name, value in values.items():
        setattr(layer, name, value)
        torch.testing.assert_close(getattr(layer, name).detach(), value)
    x = torch.randn(2, 6)
    torch.testing.assert_close(layer.circuit(x).inhibitory_drive.detach(), torch.full((5,), 0.6**2))


@pytest.mark.slow
@pytest.mark.parametrize("recurrence", ["identity", "spectral"])
def test_a_training_loop(recurrence: str) -> None:
    """The loss falls, and no step leaves the constraints."""
    torch.manual_seed(0)
    model = nn.Sequential(ORGaNICsDEQ(6, 8, recurrence, learn_semisaturation=True), nn.Linear(8, 3))
    x, target = torch.randn(64, 6), torch.randint(0, 3, (64,))
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        layer: Any = model[0]
        assert (layer.normalization_weight >= 0).all()
        assert (layer.semisaturation > 0).all()
        assert ((layer.baseline_gain > 0) & (layer.baseline_gain < 1)).all()
        if recurrence == "spectral":
            assert torch.linalg.svdvals(layer.recurrent_weight.detach())[0] <= 1 + 1e-6
    assert losses[-1] < 0.85 * losses[0]


def test_a_larger_bound() -> None:
    layer = ORGaNICsDEQ(6, 5, max_singular_value=2.0)
    layer.recurrent_weight = 1.5 * torch.eye(5)
    torch.testing.assert_close(layer.recurrent_weight.detach(), 1.5 * torch.eye(5))
    with torch.no_grad():
        layer.parametrizations.recurrent_weight.original.mul_(10)
    assert torch.linalg.svdvals(layer.recurrent_weight.detach())[0] <= 2 + 1e-5


@pytest.mark.parametrize("solver", ["auto", "algorithm1", "broyden"])
def test_solver_options_reach_the_solver(solver: str) -> None:
    layer = make(solver=solver, tol=1e-5, max_iter=100, on_failure="error")
    x = torch.randn(4, 6)
    state = layer.steady_state(x)
    assert (state.residual <= 1e-5).all()
    torch.testing.assert_close(layer(x), make()(x), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_gradients_of_a_layer() -> None:
    layer = make(sizes=(3, 2), dtype=torch.float64, tol=1e-13, learn_semisaturation=True)
    names = [name for name, _ in layer.named_parameters()]
    leaves = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, *tensors: Tensor) -> Tensor:
        weights = dict(zip(names, tensors, strict=True))
        return torch.func.functional_call(layer, weights, (x,))

    assert torch.autograd.gradcheck(function, (x, *leaves))


def test_one_input_is_one_circuit() -> None:
    circuit = make().circuit(torch.randn(6))
    assert isinstance(circuit, Circuit)
    assert circuit.batch_shape == ()
