"""A layer is the same after meta, copies, pickle, files and stacking, for every option."""

import copy
import io
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils import parametrizations, parametrize, skip_init

from deq_organics import ORGaNICsDEQ
from deq_organics.constrained import HoldsConstrained
from deq_organics.parametrizations import Positive

SIZES = (4, 3)
TAU = torch.tensor([0.5, 1.0, 40.0])
OPTIONS = [
    *(
        {"recurrence": recurrence, "input_gain": gain, "learn_semisaturation": learn}
        for recurrence, gain, learn in itertools.product(
            ("identity", "spectral", "unconstrained"), ("attention", "tied"), (False, True)
        )
    ),
    {"tau_y": 2.0, "tau_a": TAU, "semisaturation": 0.3},
    {"tau_y": TAU.double(), "semisaturation": 0.3, "learn_semisaturation": True},
    {"tau_y": torch.tensor(3.0), "dtype": torch.float64},
    {"tau_y": 0.1, "semisaturation": 0.1, "dtype": torch.bfloat16},
    {"exponent": 1.5, "rectified": True, "normalize_drive": False, "max_singular_value": 2.0},
]


def everything(module: nn.Module) -> dict[str, Tensor]:
    tensors = (*module.named_parameters(), *module.named_buffers())
    return {name: value.detach() for name, value in tensors}


def assert_same(one: ORGaNICsDEQ, other: ORGaNICsDEQ) -> None:
    first, second = everything(one), everything(other)
    assert list(first) == list(second)
    for name, value in first.items():
        assert value.dtype == second[name].dtype, name
        assert torch.equal(value, second[name]), name
    x = torch.randn(5, SIZES[0], dtype=one.input_weight.dtype)
    assert torch.equal(one(x), other(x))


def with_other_weights(**options: Any) -> ORGaNICsDEQ:
    torch.manual_seed(3)
    layer = ORGaNICsDEQ(*SIZES, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def by_argument(options: dict[str, Any]) -> ORGaNICsDEQ:
    return ORGaNICsDEQ(*SIZES, **options, device="meta")


def by_context(options: dict[str, Any]) -> ORGaNICsDEQ:
    with torch.device("meta"):
        return ORGaNICsDEQ(*SIZES, **options)


def moved(options: dict[str, Any]) -> ORGaNICsDEQ:
    return ORGaNICsDEQ(*SIZES, **options).to("meta")


@pytest.mark.slow
@pytest.mark.parametrize("make", [by_argument, by_context, moved])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_deferred_initialization(options: dict[str, Any], make: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    built = ORGaNICsDEQ(*SIZES, **options)
    layer = make(options)
    assert all(tensor.is_meta for tensor in everything(layer).values())
    layer.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*layer.parameters(), *layer.buffers()):
            tensor.fill_(torch.nan)  # what memory may hold
    torch.manual_seed(0)
    layer.reset_parameters()
    assert_same(layer, built)


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_skip_init(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    built = ORGaNICsDEQ(*SIZES, **options)
    layer = skip_init(ORGaNICsDEQ, *SIZES, **options)
    torch.manual_seed(0)
    layer.reset_parameters()
    assert_same(layer, built)


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 45])
@pytest.mark.parametrize("recurrence", ["identity", "spectral", "unconstrained"])
def test_solving_beside_another_default_device(recurrence: str, size: int) -> None:
    """Nothing is made on the default device: on meta it would have no values."""
    torch.manual_seed(0)
    layer = ORGaNICsDEQ(4, size, recurrence, dtype=torch.float64)
    if recurrence != "identity":
        matrix = torch.randn(size, size, dtype=torch.float64)
        layer.fill("recurrent_weight", 0.9 * matrix / torch.linalg.matrix_norm(matrix, 2))
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def results() -> tuple[Tensor, ...]:
        rates = layer(x)
        (slope,) = torch.autograd.grad(rates.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(slope.square().sum(), x)
        _, pushed = torch.func.jvp(layer, (x.detach(),), (x.detach(),))  # type: ignore[misc]
        return rates, slope, second, pushed

    expected = results()
    torch.set_default_device("meta")
    try:
        found = results()
    finally:
        torch.set_default_device(None)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_a_default_device_of_meta() -> None:
    """A layer of another device makes nothing on the default one."""
    torch.manual_seed(0)
    built = ORGaNICsDEQ(*SIZES, learn_semisaturation=True, tau_y=TAU)
    torch.set_default_device("meta")
    try:
        torch.manual_seed(0)
        layer = ORGaNICsDEQ(*SIZES, learn_semisaturation=True, tau_y=TAU, device="cpu")
        assert all(value.device.type == "cpu" for value in layer.state_dict().values())
        layer.load_state_dict(layer.state_dict())
    finally:
        torch.set_default_device(None)
    assert_same(layer, built)


def test_time_constants_without_values() -> None:
    tau = torch.ones(3, device="meta")
    layer = ORGaNICsDEQ(*SIZES, tau_y=tau, device="meta").to_empty(device="cpu")
    with pytest.raises(ValueError, match=r"tau_y: got a tensor on meta at construction"):
        layer.reset_parameters()
    with pytest.raises(ValueError, match=r"tau_a: got a tensor on meta at construction"):
        ORGaNICsDEQ(*SIZES, tau_a=tau)


def through_a_file(layer: ORGaNICsDEQ) -> ORGaNICsDEQ:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "travel",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), through_a_file],
    ids=["deepcopy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_copies(options: dict[str, Any], travel: Callable[..., Any]) -> None:
    layer = with_other_weights(**options)
    other = travel(layer)
    assert type(other) is ORGaNICsDEQ
    assert_same(layer, other)
    before = layer.baseline_gain.detach().clone()
    other.baseline_gain = torch.full_like(before, 0.25)
    assert torch.equal(layer.baseline_gain, before)
    other.reset_parameters()
    assert torch.equal(layer.baseline_gain, before)


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS[:12:3] + OPTIONS[1:12:3], ids=str)
def test_stacked_layers(options: dict[str, Any]) -> None:
    layers = []
    for seed in range(3):
        torch.manual_seed(seed)
        layers.append(ORGaNICsDEQ(*SIZES, **options, dtype=torch.float64, tol=1e-12))
    if options["recurrence"] != "identity":
        # One at the start, one within the bound, and one that is scaled down to it.
        for layer, scale in zip(layers[1:], (0.3, 3.0), strict=True):
            original = dict(layer.named_parameters())
            name = next(name for name in original if "recurrent_weight" in name)
            with torch.no_grad():
                original[name].copy_(scale * torch.randn(3, 3, dtype=torch.float64))
                if options["recurrence"] == "unconstrained":
                    original[name].mul_(0.2)
    parameters, buffers = stack_module_state(layers)
    base = copy.deepcopy(layers[0]).to("meta")
    x = torch.randn(2, 4, dtype=torch.float64)

    def rates(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(base, (parameters, buffers), (x,))

    shared = vmap(rates, in_dims=(0, 0, None))(parameters, buffers, x)
    own = vmap(rates)(parameters, buffers, x.expand(3, 2, 4))
    for index, layer in enumerate(layers):
        torch.testing.assert_close(shared[index], layer(x), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(own[index], layer(x), rtol=1e-9, atol=1e-11)
    shared.square().sum().backward()
    for name, parameter in layers[1].named_parameters():
        (expected,) = torch.autograd.grad(layers[1](x).square().sum(), parameter)
        torch.testing.assert_close(parameters[name].grad[1], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("recurrence", ["identity", "spectral"])
def test_export_is_refused_in_a_sentence(recurrence: str, strict: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), ORGaNICsDEQ(*SIZES, recurrence))
    # torch wraps the error in its strict mode.
    kind = torch._dynamo.exc.Unsupported if strict else NotImplementedError
    with pytest.raises(kind, match="a steady state cannot be exported or traced: which steps"):
        torch.export.export(model, (torch.randn(2, 4),), strict=strict)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_tracing_is_refused_in_a_sentence() -> None:
    with pytest.raises(NotImplementedError, match="a steady state cannot be exported or traced"):
        torch.jit.trace(ORGaNICsDEQ(*SIZES), torch.randn(2, 4))


def test_reset_parameters_after_a_constraint_is_removed() -> None:
    layer = with_other_weights(learn_semisaturation=True)
    values = {
        name: getattr(layer, name).detach().clone()
        for name in ("recurrent_weight", "baseline_gain", "normalization_weight", "semisaturation")
    }
    for name, value in values.items():
        layer.remove_constraint(name)
        assert isinstance(getattr(layer, name), nn.Parameter)
        assert torch.equal(getattr(layer, name), value)
    assert torch.isfinite(layer(torch.randn(2, 4))).all()
    torch.manual_seed(0)
    layer.reset_parameters()
    torch.manual_seed(0)
    fresh = ORGaNICsDEQ(*SIZES, learn_semisaturation=True)
    for name in values:
        torch.testing.assert_close(getattr(layer, name), getattr(fresh, name))
    with pytest.raises(ValueError, match="name: got 'baseline_gain', expected the name of a const"):
        layer.remove_constraint("baseline_gain")
    # torch's function finds nothing to remove, and says so.
    with pytest.raises(ValueError, match="does not have a parametrization on baseline_gain"):
        parametrize.remove_parametrizations(fresh, "baseline_gain")


def test_torchs_own_parametrizations_of_the_other_weights() -> None:
    torch.manual_seed(0)
    layer, untouched = ORGaNICsDEQ(*SIZES), ORGaNICsDEQ(*SIZES)
    before = everything(layer)
    parametrizations.orthogonal(layer, "input_weight")
    for name in ("baseline_gain", "normalization_weight", "recurrent_weight"):
        key = f"parametrizations.{name}.original"
        assert torch.equal(everything(layer)[key], before[key])
    layer.baseline_gain = torch.full((3,), 0.2)
    torch.testing.assert_close(layer.baseline_gain.detach(), torch.full((3,), 0.2))
    assert torch.isfinite(layer(torch.randn(2, 4))).all()
    layer.reset_parameters()
    torch.testing.assert_close(layer.baseline_gain.detach(), torch.full((3,), 0.5))
    weight = layer.input_weight.detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(3))
    parametrize.remove_parametrizations(layer, "input_weight")
    assert torch.isfinite(layer(torch.randn(2, 4))).all()
    assert isinstance(untouched.input_weight, nn.Parameter)


class TestAssignment:
    @pytest.mark.parametrize(
        ("value", "error", "message"),
        [
            (torch.ones(2), ValueError, r"scale: got shape \(2,\), .*expected \(3,\)"),
            (torch.ones(1), ValueError, r"scale: got shape \(1,\), .*expected \(3,\)"),
            (torch.ones(3).double(), ValueError, r"scale: got .*float64.*, expected .*float32"),
            (torch.ones(3, device="meta"), ValueError, r"scale: got .*on meta, expected .*on cpu"),
            (torch.ones(3).long(), TypeError, r"scale: got dtype torch\.int64"),
            (None, TypeError, r"scale: got NoneType"),
            (1.0, TypeError, r"scale: got float"),
            (-torch.ones(3), ValueError, r"scale: got a smallest value of -1"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, value: Any, error: type[Exception], message: str
    ) -> None:
        module = _Scaled()
        with pytest.raises(error, match=message):
            module.scale = value
        torch.testing.assert_close(module.scale.detach(), torch.ones(3))

    @pytest.mark.parametrize(
        "value",
        [
            torch.rand(3) + 1,
            (torch.rand(3, 5) + 1)[:, 2],
            torch.tensor(2.0).expand(3),
            nn.Parameter(torch.rand(3) + 1),
        ],
    )
    def test_a_value_is_copied(self, value: Tensor) -> None:
        module: Any = _Scaled()
        parameter = module.parametrizations.scale.original
        module.scale = value
        torch.testing.assert_close(module.scale, value + 0)
        assert module.parametrizations.scale.original is parameter
        with torch.no_grad():
            value[0].mul_(2)
        assert not torch.equal(module.scale, value)

    def test_names(self) -> None:
        module = _Scaled()
        assert [name for name, _ in module.named_parameters()] == [
            "parametrizations.scale.original"
        ]
        with pytest.raises(AttributeError, match="other"):
            _ = module.other


class _Scaled(HoldsConstrained):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.constrain("scale", Positive("scale"))
