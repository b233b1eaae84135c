"""What a careless caller gives, and the error that names the argument and what came."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deq_organics import Circuit, ORGaNICsDEQ, check_stability, m_matrix_certificate, simulate
from deq_organics.parametrizations import Nonnegative, Positive, SingularValueBound, UnitInterval

NAN, INF = float("nan"), float("inf")
D, C, WR, W = torch.full((4, 3), 0.2), torch.full((3,), 0.5), 0.5 * torch.eye(3), torch.ones(3, 3)


def circuit(**changes: Any) -> Circuit:
    arguments = {
        "input_drive": D,
        "inhibitory_drive": C,
        "recurrent_weight": WR,
        "normalization_weight": W,
    }
    return Circuit(**{**arguments, **changes})


def with_value(tensor: Tensor, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[0] = value
    return tensor


CIRCUITS = [
    ({"input_drive": [0.1, 0.2, 0.3]}, TypeError, r"input_drive: got list"),
    ({"input_drive": np.zeros(3)}, TypeError, r"input_drive: got ndarray"),
    ({"input_drive": D.long()}, TypeError, r"input_drive: got dtype torch\.int64"),
    ({"input_drive": D.to(torch.complex64)}, TypeError, r"input_drive: got dtype torch\.complex64"),
    ({"input_drive": torch.tensor(1.0)}, ValueError, r"input_drive: got shape \(\)"),
    ({"input_drive": torch.ones(2, 0)}, ValueError, r"input_drive: got shape \(2, 0\)"),
    ({"input_drive": with_value(D, NAN)}, ValueError, r"input_drive: got 1 NaN or infinite .* 12"),
    ({"input_drive": with_value(D, INF)}, ValueError, r"input_drive: got 1 NaN or infinite"),
    ({"inhibitory_drive": 0.0}, ValueError, r"inhibitory_drive: got 0\.0"),
    ({"inhibitory_drive": -1}, ValueError, r"inhibitory_drive: got -1"),
    ({"inhibitory_drive": "1"}, TypeError, r"inhibitory_drive: got '1' \(str\)"),
    ({"inhibitory_drive": None}, TypeError, r"inhibitory_drive: got None"),
    (
        {"inhibitory_drive": with_value(C, 0.0)},
        ValueError,
        r"inhibitory_drive: got a smallest .* 0",
    ),
    ({"inhibitory_drive": with_value(C, NAN)}, ValueError, r"inhibitory_drive: got 1 NaN"),
    ({"inhibitory_drive": torch.ones(4)}, ValueError, r"inhibitory_drive: got shape \(4,\)"),
    ({"inhibitory_drive": C.double()}, ValueError, r"inhibitory_drive: got torch\.float64"),
    ({"inhibitory_drive": C.int()}, TypeError, r"inhibitory_drive: got dtype torch\.int32"),
    ({"recurrent_weight": 1.0}, TypeError, r"recurrent_weight: got float"),
    ({"recurrent_weight": np.eye(3)}, TypeError, r"recurrent_weight: got ndarray"),
    ({"recurrent_weight": torch.eye(4)}, ValueError, r"recurrent_weight: got shape \(4, 4\)"),
    ({"recurrent_weight": torch.ones(3)}, ValueError, r"recurrent_weight: got shape \(3,\)"),
    ({"recurrent_weight": torch.ones(3, 2)}, ValueError, r"recurrent_weight: got shape \(3, 2\)"),
    ({"recurrent_weight": with_value(WR, INF)}, ValueError, r"recurrent_weight: got 1 NaN or inf"),
    ({"recurrent_weight": WR.double()}, ValueError, r"recurrent_weight: got torch\.float64"),
    ({"recurrent_weight": WR.to("meta")}, ValueError, r"recurrent_weight: got device meta"),
    ({"recurrent_weight": WR.expand(5, 3, 3)}, ValueError, r"leading dim.*recurrent_weight \(5,\)"),
    ({"normalization_weight": None}, TypeError, r"normalization_weight: got NoneType"),
    ({"normalization_weight": -W}, ValueError, r"normalization_weight: got a smallest .* -1"),
    ({"normalization_weight": with_value(W, NAN)}, ValueError, r"normalization_weight: got 1 NaN"),
    ({"normalization_weight": torch.ones(2, 2)}, ValueError, r"normalization_weight: .*\(2, 2\)"),
    ({"normalization_weight": W.long()}, TypeError, r"normalization_weight: got dtype torch\.int"),
    ({"tau_y": 0.0}, ValueError, r"tau_y: got 0\.0"),
    ({"tau_y": torch.zeros(3)}, ValueError, r"tau_y: got a smallest value of 0"),
    ({"tau_y": torch.ones(2)}, ValueError, r"tau_y: got shape \(2,\)"),
    ({"tau_a": INF}, ValueError, r"tau_a: got inf"),
    ({"tau_a": -0.1}, ValueError, r"tau_a: got -0\.1"),
    ({"tau_a": torch.ones(7, 3)}, ValueError, r"leading dimensions: .*tau_a \(7,\)"),
    ({"exponent": 0.5}, ValueError, r"exponent: got 0\.5"),
    ({"exponent": NAN}, ValueError, r"exponent: got nan"),
    ({"exponent": "2"}, TypeError, r"exponent: got '2'"),
    ({"exponent": True}, TypeError, r"exponent: got True"),
    ({"rectified": 1}, TypeError, r"rectified: got 1"),
    ({"rectified": "no"}, TypeError, r"rectified: got 'no'"),
]


@pytest.mark.parametrize(("changes", "error", "message"), CIRCUITS, ids=[c[2] for c in CIRCUITS])
def test_circuit(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        circuit(**changes)


OPTIONS = [
    ({"solver": "newton"}, ValueError, r"solver: got 'newton', expected one of 'auto'"),
    ({"solver": None}, ValueError, r"solver: got None"),
    ({"tol": 0.0}, ValueError, r"tol: got 0\.0"),
    ({"tol": -1e-6}, ValueError, r"tol: got -1e-06"),
    ({"tol": 2.0}, ValueError, r"tol: got 2\.0"),
    ({"tol": NAN}, ValueError, r"tol: got nan"),
    ({"tol": "1e-6"}, TypeError, r"tol: got '1e-6'"),
    ({"tol": 1e-9}, ValueError, r"tol: got 1e-09, .*torch\.float32 .*use float64"),
    ({"max_iter": 0}, ValueError, r"max_iter: got 0"),
    ({"max_iter": -1}, ValueError, r"max_iter: got -1"),
    ({"max_iter": 2.5}, TypeError, r"max_iter: got 2\.5"),
    ({"max_iter": True}, TypeError, r"max_iter: got True"),
    ({"on_failure": "raise"}, ValueError, r"on_failure: got 'raise', expected one of 'error'"),
    ({"on_failure": False}, ValueError, r"on_failure: got False"),
]


@pytest.mark.parametrize(("options", "error", "message"), OPTIONS, ids=[o[2] for o in OPTIONS])
def test_options_of_a_solve(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        circuit().steady_state(**options)


@pytest.mark.parametrize("name", ["tolerance", "maxiter"])
def test_unknown_options_are_not_ignored(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        circuit().steady_state(**{name: 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=name):
        ORGaNICsDEQ(4, 3, **{name: 1})  # type: ignore[arg-type]


STATES = [
    ((torch.ones(4), torch.ones(3)), ValueError, r"y: got shape \(4,\), expected \(\.\.\., 3\)"),
    ((torch.ones(3), torch.ones(4, 2)), ValueError, r"a: got shape \(4, 2\)"),
    ((torch.tensor(1.0), torch.ones(3)), ValueError, r"y: got shape \(\)"),
    ((torch.ones(3).long(), torch.ones(3)), TypeError, r"y: got dtype torch\.int64"),
    ((torch.ones(3), np.ones(3)), TypeError, r"a: got ndarray"),
    ((None, torch.ones(3)), TypeError, r"y: got NoneType"),
    ((torch.ones(3, device="meta"), torch.ones(3)), ValueError, r"y: got device meta"),
]


@pytest.mark.parametrize(("state", "error", "message"), STATES, ids=[s[2] for s in STATES])
@pytest.mark.parametrize("method", ["vector_field", "jacobian", "firing_rates"])
def test_state(method: str, state: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        getattr(circuit(), method)(*state)


@pytest.mark.parametrize("function", [Circuit.closed_form, m_matrix_certificate])
def test_closed_form_with_recurrent_weights(function: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"recurrent_weight: got a matrix, expected None"):
        function(circuit())


LAYERS = [
    ({"input_size": 0}, ValueError, r"input_size: got 0"),
    ({"input_size": 4.0}, TypeError, r"input_size: got 4\.0"),
    ({"hidden_size": -3}, ValueError, r"hidden_size: got -3"),
    ({"hidden_size": "3"}, TypeError, r"hidden_size: got '3'"),
    ({"hidden_size": True}, TypeError, r"hidden_size: got True"),
    ({"recurrence": "orthogonal"}, ValueError, r"recurrence: got 'orthogonal'.*'spectral'"),
    ({"recurrence": None}, ValueError, r"recurrence: got None"),
    ({"input_gain": "none"}, ValueError, r"input_gain: got 'none', expected one of 'attention'"),
    ({"max_singular_value": 0.5}, ValueError, r"max_singular_value: got 0\.5"),
    ({"max_singular_value": INF}, ValueError, r"max_singular_value: got inf"),
    ({"semisaturation": 0}, ValueError, r"semisaturation: got 0"),
    ({"semisaturation": torch.ones(3)}, TypeError, r"semisaturation: got tensor"),
    ({"tau_y": -1.0}, ValueError, r"tau_y: got -1\.0"),
    ({"tau_a": torch.ones(4)}, ValueError, r"tau_a: got shape \(4,\)"),
    ({"tau_a": torch.zeros(3)}, ValueError, r"tau_a: got a smallest value of 0"),
    ({"tau_a": torch.ones(3).int()}, TypeError, r"tau_a: got dtype torch\.int32"),
    ({"exponent": 0.9}, ValueError, r"exponent: got 0\.9"),
    ({"rectified": "yes"}, TypeError, r"rectified: got 'yes'"),
    ({"normalize_drive": 1}, TypeError, r"normalize_drive: got 1"),
    ({"learn_semisaturation": None}, TypeError, r"learn_semisaturation: got None"),
    ({"solver": "Auto"}, ValueError, r"solver: got 'Auto'"),
    ({"tol": 0}, ValueError, r"tol: got 0"),
    ({"max_iter": 1.0}, TypeError, r"max_iter: got 1\.0"),
    ({"on_failure": "nan"}, ValueError, r"on_failure: got 'nan'"),
    ({"dtype": torch.int64}, TypeError, r"dtype: got torch\.int64"),
    ({"dtype": torch.complex64}, TypeError, r"dtype: got torch\.complex64"),
    ({"device": "gpu"}, RuntimeError, r"gpu"),
]


@pytest.mark.parametrize(("changes", "error", "message"), LAYERS, ids=[c[2] for c in LAYERS])
def test_layer(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ORGaNICsDEQ(**{"input_size": 4, "hidden_size": 3, **changes})


INPUTS = [
    (torch.ones(2, 3), ValueError, r"x: got shape \(2, 3\), expected \(\*, 4\)"),
    (torch.tensor(1.0), ValueError, r"x: got shape \(\)"),
    (torch.ones(4).long(), TypeError, r"x: got dtype torch\.int64"),
    (torch.ones(4).double(), ValueError, r"x: got torch\.float64, expected torch\.float32"),
    (torch.ones(2, 4, device="meta"), ValueError, r"x: got device meta, expected cpu"),
    (np.ones(4), TypeError, r"x: got ndarray"),
    (with_value(torch.ones(2, 4), NAN), ValueError, r"x: got 1 NaN or infinite values of 8"),
    (with_value(torch.ones(2, 4), -INF), ValueError, r"x: got 1 NaN or infinite"),
]


@pytest.mark.parametrize(("x", "error", "message"), INPUTS, ids=[i[2] for i in INPUTS])
def test_input_of_a_layer(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ORGaNICsDEQ(4, 3)(x)


ASSIGNED = [
    ("recurrent_weight", 1.5 * torch.eye(3), r"largest singular value of 1\.5, expected at most 1"),
    ("recurrent_weight", with_value(torch.eye(3), NAN), r"weight: got 1 NaN"),
    ("normalization_weight", -torch.ones(3, 3), r"smallest value of -1, expected nonnegative"),
    ("normalization_weight", torch.full((3, 3), INF), r"got 9 NaN or infinite"),
    ("baseline_gain", torch.ones(3), r"largest value of 1, expected values below 1"),
    ("baseline_gain", torch.zeros(3), r"smallest value of 0, expected positive"),
    ("semisaturation", torch.zeros(3), r"smallest value of 0, expected positive"),
]


@pytest.mark.parametrize(("name", "value", "message"), ASSIGNED)
def test_assigned_weights(name: str, value: Tensor, message: str) -> None:
    layer = ORGaNICsDEQ(4, 3, learn_semisaturation=True)
    before = getattr(layer, name).detach().clone()
    with pytest.raises(ValueError, match=message):
        setattr(layer, name, value)
    assert torch.equal(getattr(layer, name), before)


@pytest.mark.parametrize("constraint", [Positive(), Nonnegative(), UnitInterval()])
def test_assigned_integers(constraint: Any) -> None:
    with pytest.raises(TypeError, match=r"value: got dtype torch\.int64"):
        constraint.right_inverse(torch.ones(3).long())


@pytest.mark.parametrize("bound", [0.0, -1.0, NAN])
def test_bound(bound: float) -> None:
    with pytest.raises(ValueError, match=r"bound: got"):
        SingularValueBound(bound)


def test_weights_ruined_by_training_are_named() -> None:
    layer = ORGaNICsDEQ(4, 3, "unconstrained")
    with torch.no_grad():
        layer.recurrent_weight.fill_(NAN)
    with pytest.raises(ValueError, match="recurrent_weight: got 9 NaN"):
        layer(torch.ones(4))


@pytest.mark.slow
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("recurrence", ["identity", "spectral", "unconstrained"])
@pytest.mark.parametrize("gain", ["attention", "tied"])
def test_every_parameter_that_is_not_finite_is_named(
    recurrence: str, gain: str, value: float
) -> None:
    """By its own name, not by that of what is computed from it."""
    layer = ORGaNICsDEQ(4, 3, recurrence, gain, learn_semisaturation=True)
    parameters = dict(layer.named_parameters())
    assert len(parameters) == 4 + (recurrence != "identity") + (gain == "attention")
    for path, parameter in parameters.items():
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[1] = value
        name = path.removeprefix("parametrizations.").removesuffix(".original")
        for call in (layer, layer.circuit, layer.steady_state, torch.func.vmap(layer)):
            with pytest.raises(ValueError, match=rf"^{name}: got 1 NaN or infinite values of"):
                call(torch.ones(2, 4))
        parameter.data = before
    assert torch.isfinite(layer(torch.ones(2, 4))).all()


def test_too_small_a_tol_for_the_layers_precision() -> None:
    with pytest.raises(ValueError, match=r"tol: got 1e-09.*torch\.float32"):
        ORGaNICsDEQ(4, 3, tol=1e-9)(torch.ones(4))


CHECKS = [
    (lambda: check_stability(nn.Linear(2, 2)), TypeError, r"target: got Linear"),  # type: ignore[arg-type]
    (lambda: check_stability(None), TypeError, r"target: got NoneType"),
    (lambda: check_stability(circuit(), D), TypeError, r"state: got Tensor, expected a Steady"),
    (lambda: check_stability(ORGaNICsDEQ(4, 3)), TypeError, r"state: got NoneType"),
    (
        lambda: check_stability(ORGaNICsDEQ(4, 3), circuit().steady_state()),
        TypeError,
        r"state: got SteadyState, expected the layer's input",
    ),
    (
        lambda: check_stability(ORGaNICsDEQ(4, 3), torch.ones(3)),
        ValueError,
        r"x: got shape \(3,\)",
    ),
    (
        lambda: check_stability(circuit(), circuit(input_drive=D[0]).steady_state()),
        ValueError,
        r"state: got shape \(3,\), expected \(4, 3\)",
    ),
    (lambda: check_stability(circuit(), (D,)), TypeError, r"state: got tuple, expected a Steady"),
    (lambda: check_stability(circuit(), (D, 1.0)), TypeError, r"state, a: got float"),  # type: ignore[arg-type]
    (
        lambda: check_stability(circuit(), (D, torch.ones(5, 4, 3))),
        ValueError,
        r"state, a: got shape \(5, 4, 3\), expected one that broadcasts to \(4, 3\)",
    ),
    (
        lambda: check_stability(ORGaNICsDEQ(4, 3), (D, D)),
        TypeError,
        r"state: got tuple, expected the layer's input",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), CHECKS, ids=[c[2] for c in CHECKS])
def test_checker(call: Callable[..., Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


TIMES = torch.linspace(0, 1, 3)
SIMULATIONS = [
    ({"t": [0.0, 1.0]}, TypeError, r"t: got list"),
    ({"t": torch.arange(3)}, TypeError, r"t: got dtype torch\.int64"),
    ({"t": torch.tensor([0.0])}, ValueError, r"t: got shape \(1,\)"),
    ({"t": torch.tensor(1.0)}, ValueError, r"t: got shape \(\)"),
    ({"t": TIMES.flip(0)}, ValueError, r"t: .*increasing"),
    ({"t": torch.tensor([0.0, NAN])}, ValueError, r"t: got 1 NaN"),
    ({"t": TIMES, "y0": torch.ones(4)}, ValueError, r"y0: got shape \(4,\)"),
    ({"t": TIMES, "y0": [0.0] * 3}, TypeError, r"y0: got list"),
    ({"t": TIMES, "a0": torch.full((3,), NAN)}, ValueError, r"a0: got 3 NaN"),
    ({"t": TIMES, "method": "euler2"}, ValueError, r"euler2"),
    ({"t": TIMES, "step": 0.1}, TypeError, r"step"),
]


@pytest.mark.parametrize(
    ("options", "error", "message"), SIMULATIONS, ids=[s[2] for s in SIMULATIONS]
)
def test_simulation(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        simulate(circuit(), **options)
