"""Bounded cells never leave the box that they state, and other cells state none."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from recurrent import ORGaNICsCell, ORGaNICsRNN, State, check_trajectory
from recurrent.bounded import RecurrentRows, Rows

MODELS: tuple[dict[str, Any], ...] = (
    {},
    {"rectified": False},
    {"rectifier": "after_weights"},
    {"input_gain": "fixed"},
)
FAST: dict[str, Any] = {"max_step_y": 1.0, "max_step_a": 1.0, "max_step_b": 1.0}


def bounded(*sizes: int, **options: object) -> ORGaNICsCell:
    return ORGaNICsCell(*sizes, recurrence="bounded", **options)  # type: ignore[arg-type]


def scaled(cell: ORGaNICsCell, step_scale: float) -> ORGaNICsCell:
    cell.step_scale = step_scale
    return cell


def scramble(module: nn.Module, scale: float) -> None:
    """Any values of the unconstrained parameters, as training may give them."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_().mul_(scale)


def step_by_hand(cell: ORGaNICsCell, x: Tensor, state: State) -> State:
    """Eqs. 87, 1 or the published code's, and 17, written out; shares no code with the library."""
    y, a, b, b0 = state
    z = x @ cell.input_weight.T
    wr, rectified = cell.recurrent_weight, cell.model.rectified
    r = y.clamp(min=0) if rectified else y
    u = (y @ wr.T).clamp(min=0) if cell.model.after_weights else r @ wr.T
    z = z.clamp(min=0) if rectified else z
    root = a.clamp(min=0) ** 0.5
    pool = (r**2 * a.clamp(min=0)) @ cell.normalization_weight.T
    new = [
        y + cell.step_y * (b * z - y + (1 - root) * u),
        a + cell.step_a * ((b0 * cell.semisaturation) ** 2 - a + pool),
    ]
    if cell.input_gain == "fixed":
        return State(new[0], new[1], b, b0)
    for gain, prefix, step in ((b, "", cell.step_b), (b0, "baseline_", cell.step_b0)):
        weights = [getattr(cell, f"{prefix}gain_weight_{part}") for part in "xya"]
        drive = sum(v @ w.T for v, w in zip((x, y, a), weights, strict=True))
        new.append(gain + step * (1 / (1 + torch.exp(-drive)) - gain))
    return State(*new)


def corners(bound: State, count: int, n: int, signs: Tensor) -> State:
    """States at the corners and inside of the box, half and half; y and a of both signs."""
    parts = torch.rand(4, count, n, dtype=signs.dtype)
    parts[:, : count // 2] = parts[:, : count // 2].round()
    y, a, b, b0 = (top * part for top, part in zip(bound, parts, strict=True))
    return State(y * signs, a * signs.flip(0), b, b0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("sigma", [0.2, 1.0, 3.0])
def test_no_state_leaves_the_bound(dtype: torch.dtype, model: dict[str, Any], sigma: float) -> None:
    for scale, (m, n), largest in zip(
        (0.01, 1.0, 30.0, 1e4),
        ((1, 1), (3, 2), (2, 17), (5, 6)),
        (1.0, 0.02, 7.0, 1e6),
        strict=True,
    ):
        options: dict[str, Any] = {
            "semisaturation": sigma,
            "input_bound": largest,
            "dtype": dtype,
            **model,
            **FAST,
        }
        cell = bounded(m, n, **options)
        scramble(cell, scale)
        bound = cell.state_bound(largest)
        state = corners(bound, 40, n, torch.randn(40, n, dtype=dtype).sign())
        with torch.no_grad():
            for step in range(24):
                x = largest * (2 * torch.rand(40, m, dtype=dtype) - 1)
                state = step_by_hand(cell, x.sign() * largest if step % 2 else x, state)
                for part, top in zip(state, bound, strict=True):
                    assert (part.abs() <= top).all()
                assert (state.b >= 0).all()
                assert (state.b0 >= 0).all()


@pytest.mark.parametrize("model", MODELS)
def test_the_conditions_of_the_theorem_hold_for_any_parameters(model: dict[str, Any]) -> None:
    for sigma, scale in itertools.product((0.3, 1.0, 2.0), (1e-30, 0.3, 1e3, 1e30)):
        cell = bounded(3, 9, semisaturation=sigma, input_bound=2.0, **model)
        scramble(cell, scale)
        top = cell.state_bound(2.0).a
        steepest = max(1.0, float(top) ** 0.5 - 1.0)
        wr, w = cell.recurrent_weight.detach(), cell.normalization_weight.detach()
        positive, negative = wr.clamp(min=0).sum(-1), -wr.clamp(max=0).sum(-1)
        recurrent = positive + negative
        if cell.model.rectified and not cell.model.after_weights:
            recurrent = torch.maximum(positive, negative)
        drive = 2.0 * cell.input_weight.detach().abs().sum(-1) + steepest * recurrent
        assert (drive <= 0.995).all()
        assert (w >= 0).all()
        assert (w.sum(-1) <= 0.97 * (1 - sigma**2 / top)).all()
        for name in ("y", "a"):
            step = getattr(cell, f"step_{name}").detach()
            assert (step >= cell.max_steps[name] / 201).all()
            assert (step <= cell.max_steps[name]).all()


@pytest.mark.slow
def test_the_bound_is_of_the_size_of_what_is_reached() -> None:
    cell = bounded(1, 2, rectified=False, **FAST)
    with torch.no_grad():
        cell.recurrent_weight = torch.tensor([[0.0, 0.65], [0.65, 0.0]])
        cell.input_weight = torch.full((2, 1), 0.32)
        cell.normalization_weight = torch.full((2, 2), 0.35)
        # Without inhibition and with full gains y climbs to 0.32 / (1 - 0.65) of the bound's 1.
        for name in ("gain_weight_x", "baseline_gain_weight_x"):
            getattr(cell, name).fill_(100.0 if name.startswith("gain") else -100.0)
        state = State(torch.zeros(2), torch.zeros(2), torch.ones(2), torch.zeros(2))
        for _ in range(300):
            state = cell(torch.ones(1), state)
    assert state.y.min() > 0.85


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_smallest_steps_and_the_longest_sequences_in_single_precision(backend: str) -> None:
    rnn = ORGaNICsRNN(
        1,
        3,
        recurrence="bounded",
        backend=backend,
        rectified=False,
        max_step_y=0.01,
        max_step_a=0.003,
    )
    cell, steps = rnn.cells[0], 20_000 if backend == "fused" else 2_000
    with torch.no_grad():
        for name in ("step_y", "step_a"):
            getattr(cell.parametrizations, name).original.fill_(-100.0)
        cell.recurrent_weight = 0.66 * torch.ones(3, 3) / 3
        cell.input_weight = torch.full((3, 1), 0.33)
        cell.normalization_weight = torch.full((3, 3), 0.71 / 3)
        bound = rnn.state_bound()
        state = State(*(top.expand(1, 3) for top in bound))
        output, last = rnn(torch.ones(steps, 1), state)
    assert output.isfinite().all()
    assert output.abs().max() <= bound.y
    for part, top in zip(last, bound, strict=True):
        assert part.abs().max() <= top


@pytest.mark.slow
@pytest.mark.parametrize("readout", ["y", "rates"])
def test_layers_of_bounded_cells_are_bounded(readout: str) -> None:
    rnn = ORGaNICsRNN(
        2, 5, num_layers=3, recurrence="bounded", input_bound=4.0, readout=readout, **FAST
    )
    scramble(rnn, 3.0)
    bound = rnn.state_bound(4.0)
    state = rnn.draw_state(7)
    with torch.no_grad():
        for _ in range(20):
            output, state = rnn(8 * torch.rand(11, 7, 2) - 4, state)
            assert output.abs().max() <= bound.y
            for part, top in zip(state, bound, strict=True):
                assert (part.abs() <= top).all()


@pytest.mark.parametrize("model", MODELS)
def test_backends_agree_on_bounded_cells(model: dict[str, Any]) -> None:
    torch.manual_seed(1)
    fused = ORGaNICsRNN(2, 6, recurrence="bounded", backend="fused", dtype=torch.float64, **model)
    scramble(fused, 1.0)
    reference = copy.deepcopy(fused)
    reference.backend = "reference"
    x = torch.rand(30, 4, 2, dtype=torch.float64)
    results = []
    for rnn in (fused, reference):
        output, _ = rnn(x)
        output.square().sum().backward()
        results.append([output, *(parameter.grad for parameter in rnn.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.03, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_training_stays_finite_and_within_the_bound(rate: float, seed: int) -> None:
    torch.manual_seed(seed)
    rnn = ORGaNICsRNN(2, 12, recurrence="bounded", max_step_y=0.5, max_step_a=0.5, max_step_b=1.0)
    readout = nn.Linear(12, 3)
    optimizer = torch.optim.Adam([*rnn.parameters(), *readout.parameters()], lr=rate)
    bound = rnn.state_bound()
    for _ in range(40):
        x = torch.rand(60, 16, 2).round()
        output, last = rnn(x)
        assert output.abs().max() <= bound.y
        assert last.a.abs().max() <= bound.a
        target = (x[..., 0].mean(0) * 6).long().clamp(max=2)
        loss = nn.functional.cross_entropy(50 * readout(output[-1]), target)
        optimizer.zero_grad()
        loss.backward()
        for parameter in rnn.parameters():
            assert parameter.grad.isfinite().all()
        optimizer.step()


@pytest.mark.parametrize("nonnegative", [True, False])
def test_recurrent_rows_keep_what_is_assigned_and_refuse_the_rest(nonnegative: bool) -> None:
    constraint = RecurrentRows(0.7, nonnegative)
    weight = torch.randn(6, 6, dtype=torch.float64)
    weight *= 0.69 / weight.abs().sum(-1, keepdim=True)
    torch.testing.assert_close(constraint(constraint.right_inverse(weight)), weight)
    for edge in (0.7 * torch.eye(6).double(), torch.zeros(6, 6).double()):
        torch.testing.assert_close(constraint(constraint.right_inverse(edge)), edge)
    with pytest.raises(ValueError, match="weight: got a row that sums to 1"):
        constraint.right_inverse(torch.eye(6))
    with pytest.raises(ValueError, match="weight: got 1 NaN"):
        constraint.right_inverse(
            torch.zeros(6, 6).index_put((torch.tensor(1),) * 2, torch.tensor(torch.nan))
        )
    assert gradcheck(constraint, torch.randn(4, 4, dtype=torch.float64, requires_grad=True))


def test_signs_are_bounded_apart_where_r_is_not_negative() -> None:
    weight = torch.tensor([[0.0, 0.7, -0.7], [0.3, 0.4, -0.7], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(
        RecurrentRows(0.7, True)(RecurrentRows(0.7, True).right_inverse(weight)), weight
    )
    with pytest.raises(ValueError, match="got a row that sums to 1"):
        RecurrentRows(0.7, False).right_inverse(weight)


def test_rows_scale_down_only() -> None:
    constraint = Rows(2.0)
    weight = torch.tensor([[1.0, -0.5], [3.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[1.0, -0.5], [1.5, -0.5], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(constraint(weight), expected)
    torch.testing.assert_close(constraint(constraint.right_inverse(expected)), expected)
    with pytest.raises(ValueError, match="weight: got a row that sums to 4, expected at most 2"):
        constraint.right_inverse(weight)
    assert repr(constraint) == "Rows(bound=2)"


@pytest.mark.parametrize("value", [0.0, 1e-38, 1e30, -1e30])
def test_extreme_parameters_give_finite_weights_and_gradients(value: float) -> None:
    cell = bounded(2, 4)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.fill_(value)
    state = cell(torch.ones(3, 2), cell.rest_state(3))
    sum(part.sum() for part in state).backward()
    for part in state:
        assert part.isfinite().all()
    for name, parameter in cell.named_parameters():
        assert parameter.grad.isfinite().all(), name


REFUSALS = [
    (
        lambda: ORGaNICsCell(1, 2, recurrence="spectral").state_bound(1.0),
        ValueError,
        "recurrence: got 'spectral', expected 'bounded'",
    ),
    (
        lambda: bounded(1, 2).state_bound(1.5),
        ValueError,
        "input_bound: got 1.5, expected at most 1:",
    ),
    (lambda: bounded(1, 2).state_bound(-1), ValueError, "input_bound: got -1"),
    (lambda: bounded(1, 2).state_bound("1"), TypeError, "input_bound: got '1'"),  # type: ignore[arg-type]
    (lambda: bounded(1, 2, input_bound=0.0), ValueError, "input_bound: got 0.0"),
    (
        lambda: ORGaNICsRNN(1, 2, recurrence="identity", input_bound=1.0),
        ValueError,
        "input_bound: got 1.0 with recurrence='identity', expected None",
    ),
    (
        lambda: bounded(1, 2, max_step_a=1e-3).state_bound(1.0),
        ValueError,
        "step_a: got values from 5e-06 to 0.001, expected 1.3e-05 to 1: rounding in torch.float32",
    ),
    (
        lambda: scaled(bounded(1, 2), 0.1).state_bound(1.0),
        ValueError,
        "step_y: got values from 1e-05 to 0.002, expected 4.8e-05 to 1",
    ),
    (lambda: scaled(bounded(1, 2), 11.0), ValueError, "step_scale: got 11.0"),
    (lambda: scaled(ORGaNICsCell(1, 2), 0.0), ValueError, "step_scale: got 0.0"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSALS)
def test_what_has_no_bound_is_refused(
    call: Callable[..., Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_buffers_that_the_weights_are_not_constrained_for_are_noticed() -> None:
    cell = bounded(1, 2, learn_time_constants=False)
    cell.state_bound(1.0)
    for name, value in (("semisaturation", 1.5), ("step_a", 1.5), ("step_y", 1e-6), ("step_b", -1)):
        changed = copy.deepcopy(cell)
        with torch.no_grad():
            getattr(changed, name)[1] = value
        with pytest.raises(ValueError, match=f"{name}: got"):
            changed.state_bound(1.0)


def test_smaller_steps_are_possible_in_double_precision() -> None:
    cell = bounded(1, 2, max_step_y=1e-6, max_step_a=1e-6, dtype=torch.float64)
    assert float(cell.state_bound(1.0).y) == 1.0


@pytest.mark.parametrize("recurrence", ["bounded", "spectral"])
@pytest.mark.parametrize("learned", [True, False])
def test_longer_steps_are_those_of_proportionally_smaller_time_constants(
    recurrence: str, learned: bool
) -> None:
    options: dict[str, Any] = {"recurrence": recurrence, "learn_time_constants": learned}
    rnn = ORGaNICsRNN(2, 5, 2, max_step_y=0.1, max_step_a=0.2, max_step_b=0.25, **options)
    other = ORGaNICsRNN(2, 5, 2, max_step_y=0.4, max_step_a=0.8, max_step_b=1.0, **options)
    with torch.no_grad():
        weights = dict(rnn.named_parameters()) | dict(rnn.named_buffers())
        for name, tensor in [*other.named_parameters(), *other.named_buffers()]:
            tensor.copy_(weights[name] * (4 if "step" in name and not learned else 1))
    rnn.step_scale = 4.0
    assert copy.deepcopy(rnn).step_scale == rnn.step_scale == 4.0
    x = torch.rand(20, 3, 2)
    torch.testing.assert_close(rnn(x)[0], other(x)[0])
    torch.testing.assert_close(other.cells[0](x[0]).b, rnn.cells[0](x[0]).b)


@pytest.mark.parametrize("recurrence", ["bounded", "spectral", "unconstrained", "identity"])
def test_a_report_says_what_holds_for_other_sequences(recurrence: str) -> None:
    cell = ORGaNICsCell(1, 3, recurrence=recurrence)
    report = check_trajectory(cell, torch.rand(5, 1))
    if recurrence == "bounded":
        assert report.stated_bound == cell.state_bound(1.0)
        assert "no sequence within the cell's input_bound leaves |y| 1, |a| 4" in str(report)
    else:
        assert report.stated_bound is None
        assert "nothing bounds the states along others" in str(report)


def test_a_report_states_no_bound_where_rounding_may_break_it() -> None:
    report = check_trajectory(bounded(1, 3, max_step_a=1e-4), torch.rand(5, 1))
    assert report.stated_bound is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_bounded_too(dtype: torch.dtype) -> None:
    rnn = ORGaNICsRNN(2, 9, 2, recurrence="bounded", dtype=dtype, semisaturation=0.7, **FAST)
    scramble(rnn, 3.0)
    bound = rnn.state_bound()
    state = rnn.draw_state(5)
    with torch.no_grad():
        for _ in range(20):
            output, state = rnn(torch.rand(11, 5, 2, dtype=dtype).round(), state)
            assert output.abs().max() <= bound.y
            for part, top in zip(state, bound, strict=True):
                assert (part.abs() <= top).all()


def test_a_state_dict_of_other_bounds_is_refused() -> None:
    for other in ({"input_bound": 2.0}, {"semisaturation": 0.5}, {"recurrence": "spectral"}):
        options: dict[str, Any] = {"recurrence": "bounded", **other}
        with pytest.raises(ValueError, match="got other options"):
            bounded(1, 2).load_state_dict(ORGaNICsCell(1, 2, **options).state_dict())


def test_the_bound_is_shown() -> None:
    assert "input_bound=3" in repr(bounded(1, 2, input_bound=3.0))


def test_cells_and_sequences_are_bounded_by_default() -> None:
    assert ORGaNICsCell(1, 2).state_bound(1.0) == ORGaNICsRNN(1, 2).state_bound(1.0)
