"""Circuits, cotangents and time constants of any size: right, or reported, never silently wrong.

The oracle solves the same circuit in other units: with ``y`` in units of ``u`` and ``W`` in units
of ``1 / u^2`` the equations are the same, so that a circuit of the size of 1 in float64 knows the
answer.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _circuits import DOUBLE, POOL, random_parameters, vector
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import hessian, jacrev, jvp

from deq_organics import Circuit, Status, SteadyStateError
from deq_organics.norms import length, size_of
from deq_organics.steady_state.adjoint import (
    adjoint_residual,
    solve_adjoint_dense,
    solve_adjoint_iteratively,
)
from deq_organics.steady_state.methods.newton import solve_newton
from deq_organics.steady_state.methods.normalized import solve_normalized

ROTATION = vector((0.0, 1.0), (-1.0, 0.0))
# Sizes of drives that float32 and float64 can hold, and their squares where they cannot.
DRIVES = {torch.float32: (1e-36, 1e-30, 1e-22, 1e-10), DOUBLE: (1e-300, 1e-200, 1e-160, 1e-30)}


def issue(
    scale: float,
    dtype: torch.dtype,
    weight: float = 1.0,
    inhibitory_drive: float = 0.25,
    **options: Any,
) -> Circuit:
    """The issue's circuit, with its drive scaled."""
    drive = torch.tensor([[1.0, 0.5]], dtype=DOUBLE) * scale
    weights = ROTATION, weight * torch.ones(2, 2, dtype=DOUBLE)
    d, wr, w = (part.to(dtype) for part in (drive, *weights))
    return Circuit(d, inhibitory_drive, wr, w, **options)


def relative_error(found: Tensor, exact: Tensor) -> float:
    exact = exact.detach()
    return float(length((found.detach().double() - exact) / exact.abs().amax()))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_tiny_drive_is_solved_or_reported(dtype: torch.dtype) -> None:
    """It "converged" with an error of 12 % at 1e-22 and of 72 % at 1e-30, both in float32."""
    # So small a drive leaves a = c: the equation for y is linear.
    gain = 1.0 - 0.5
    exact = torch.linalg.solve(torch.eye(2).double() - gain * ROTATION, vector(1.0, 0.5))
    for scale in DRIVES[dtype][:3]:
        state = issue(scale, dtype).steady_state(tol=1e-6)
        assert state.converged.all()
        assert relative_error(state.y[0] / scale, exact) < 1e-6
        assert relative_error(state.a[0], vector(0.25, 0.25)) < 1e-6
    smallest = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    state = issue(4 * smallest, dtype).steady_state(on_failure="ignore")
    assert state.status == Status.NOT_REPRESENTABLE
    assert not state.converged
    assert state.residual > 1e-2


@pytest.mark.parametrize("solver", ["auto", "algorithm1", "anderson", "fixed_point_iter"])
def test_every_solver_is_judged_in_the_units_of_its_circuit(solver: str) -> None:
    exact = issue(1.0, DOUBLE, weight=1e-44).steady_state(tol=1e-12)
    state = issue(1e-22, torch.float32).steady_state(solver, on_failure="ignore")
    assert not state.converged or relative_error(state.y / 1e-22, exact.y) < 1e-5


@pytest.mark.slow
def test_a_pool_of_tiny_squares_and_huge_weights() -> None:
    """The square of 1e-22 is zero in float32, but 1e30 times that is not."""
    starts: list[dict[str, Any]] = [{}, {"start": "rest"}]
    for options in starts:
        state = issue(1e-22, torch.float32, 1e30, 1e-14).steady_state(**options)
        exact = issue(1.0, DOUBLE, 1e-14, 1e-14).steady_state(tol=1e-12)
        assert relative_error(state.y / 1e-22, exact.y) < 1e-5
        assert relative_error(state.a, exact.a) < 1e-5
    identity = Circuit(torch.tensor([1e-22]), 1e-14, None, torch.tensor([[1e30]]))
    assert float(identity.closed_form()[1]) == pytest.approx(2e-14, rel=1e-5)


def test_a_state_beyond_the_dtype_is_reported() -> None:
    huge, eye, weights = torch.tensor([[1e5, 2e5]]), torch.eye(2), torch.ones(2, 2)
    for wr in (None, eye):
        circuit = Circuit(huge, 0.25, wr, weights, exponent=8.0)
        assert circuit.to(DOUBLE).steady_state().converged
        state = circuit.steady_state(on_failure="ignore")
        assert state.status == Status.NOT_REPRESENTABLE
        assert torch.isfinite(state.y).all()
        with pytest.raises(SteadyStateError, match="of the circuit's dtype cannot represent it"):
            circuit.steady_state(on_failure="error")
    y, a = Circuit(huge, 0.25, None, weights, exponent=8.0).closed_form()
    assert a.isinf().all()
    assert y.isnan().all()


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    dtype=st.sampled_from([torch.float32, DOUBLE]),
    drive=st.floats(-1.0, 1.0),
    inhibitory_drive=st.floats(-1.0, 1.0),
    tau=st.floats(-1.0, 1.0),
    cotangent=st.floats(-1.0, 1.0),
    seed=st.integers(0, 10**6),
)
def test_units_change_nothing(
    dtype: torch.dtype,
    drive: float,
    inhibitory_drive: float,
    tau: float,
    cotangent: float,
    seed: int,
) -> None:
    """States, gradients and tangents over the range of each dtype, against float64 at size 1."""
    low, high = ((-34, 15), (-290, 140))[dtype == DOUBLE]

    def size(part: float) -> float:
        return 10.0 ** math.floor(high * part if part > 0 else -low * part)

    # Strong drives, and c far from 1, leave no eigenvalue that could be told from zero.
    unit, root, time = size(min(drive, 0.03)), 10.0 ** (4.0 * inhibitory_drive), size(tau)
    arguments = random_parameters((3,), 3, seed=seed, singular_value=0.3)
    d, w, c = arguments["input_drive"], arguments["normalization_weight"], 0.3 * root
    # Settles at any size of a: where that is large, the identity in it damps.
    wr = arguments["recurrent_weight"] + 0.6 * torch.eye(3, dtype=DOUBLE)
    # In units of the drive the weights are so small or so large.
    exponent = 2.0 * math.log10(unit)
    scaled = 10.0**exponent if exponent > -300 else 0.0
    tensors = [(unit * d).to(dtype), wr.to(dtype), w.to(dtype)]
    small = Circuit(tensors[0].clone().requires_grad_(), c, tensors[1], tensors[2], time, time)
    state = small.steady_state(tol=1e-5, on_failure="ignore")
    other = Circuit(d.clone().requires_grad_(), c, wr, scaled * w)
    exact = other.steady_state(tol=1e-12, on_failure="ignore")
    both = state.converged & exact.converged
    for i in both.nonzero().squeeze(-1).tolist():
        assert relative_error(state.y[i] / unit, exact.y[i]) < 1e-3
        assert relative_error(state.a[i] / exact.a[i].to(dtype), torch.ones(3).double()) < 1e-3
    g = size(cotangent) * torch.ones_like(state.y)
    (found,) = torch.autograd.grad(state.y, small.input_drive, g)
    (expected,) = torch.autograd.grad(exact.y, other.input_drive, torch.ones_like(exact.y))
    for i in both.nonzero().squeeze(-1).tolist():
        if found[i].abs().amax() > 0:  # else it was reported, or is zero
            assert relative_error(found[i] / size(cotangent), expected[i]) < 1e-2


@pytest.mark.parametrize("cotangent", [1e-25, 1e-30, 1e20])
def test_small_and_large_cotangents_have_gradients(
    parameters: Callable[..., dict[str, Any]], cotangent: float
) -> None:
    """Cotangents of 1e-25 gave zero."""
    arguments = parameters((4,), 3, dtype=torch.float32)
    names = ("input_drive", "recurrent_weight", "normalization_weight", "inhibitory_drive")
    for kind, scale in itertools.product(("y", "a"), (1.0, cotangent)):
        leaves = [arguments[name].detach().clone().requires_grad_() for name in names]
        state = Circuit(**{**arguments, **dict(zip(names, leaves, strict=True))}).steady_state()
        part = getattr(state, kind)
        grads = torch.autograd.grad(part, leaves, torch.full_like(part, scale))
        if scale == 1.0:
            expected = grads
        else:
            for found, exact in zip(grads, expected, strict=True):
                torch.testing.assert_close(found / scale, exact, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("drive", [1e-22, 1e-15, 1.0])
def test_a_tiny_part_of_the_gradient_is_right_beside_a_large_one(drive: float) -> None:
    """The derivative of `a` by the drive is as small as the drive: 1e-22 of that by ``c``."""
    circuit = issue(drive, torch.float32)
    leaf = circuit.input_drive.clone().requires_grad_()
    c = torch.full((2,), 0.25, requires_grad=True)
    state = Circuit(leaf, c, circuit.recurrent_weight, circuit.normalization_weight).steady_state(
        tol=1e-6
    )
    (found,) = torch.autograd.grad(state.a.sum(), leaf)
    double = issue(1.0, DOUBLE, weight=drive**2)
    own = double.input_drive.clone().requires_grad_()
    exact = Circuit(own, 0.25, double.recurrent_weight, double.normalization_weight).steady_state(
        tol=1e-12
    )
    (expected,) = torch.autograd.grad(exact.a.sum(), own)
    assert relative_error(found.double() * drive / drive**2, expected / drive**2) < 1e-3


@pytest.mark.parametrize("scale", [1e-19, 1e-12])
def test_second_derivatives_and_tangents_of_tiny_circuits(scale: float) -> None:
    """In float32, with weights so large that the square of a tiny drive matters."""
    weights = torch.ones(2, 2)

    def settled(circuit: float, weight: float, unit: float) -> Callable[[Tensor], Tensor]:
        def f(d: Tensor) -> Tensor:
            wr = 0.5 * ROTATION.to(d.dtype)
            return (
                Circuit(d * unit, circuit, wr, weights.to(d.dtype) * weight).steady_state().y / unit
            )

        return f

    direct = settled(0.25, (0.1 / scale) ** 2, scale)
    exact = settled(0.25, 0.01, 1.0)
    d, t = torch.tensor([0.8, 0.3]), torch.tensor([1.0, -2.0])
    close: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-4, "check_dtype": False}
    torch.testing.assert_close(
        jvp(direct, (d,), (t,))[1], jvp(exact, (d.double(),), (t.double(),))[1], **close
    )
    torch.testing.assert_close(jacrev(direct)(d), jacrev(exact)(d.double()), **close)
    first = lambda f: lambda d: f(d)[0]  # noqa: E731
    torch.testing.assert_close(
        hessian(first(direct))(d), hessian(first(exact))(d.double()), **close
    )


@pytest.mark.parametrize("scale", [1e-200, 1e-25, 1.0, 1e150])
def test_the_adjoint_is_linear_in_its_right_hand_side(
    parameters: Callable[..., dict[str, Any]], scale: float
) -> None:
    problem = Circuit(**parameters((5,), 4)).flatten()
    found = solve_normalized(problem, 1e-12, 60)
    g = torch.randn(5, 8, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
    dense = solve_adjoint_dense(problem, found.y, found.a, g)
    adjoint, residual = solve_adjoint_iteratively(problem, found.y, found.a, scale * g, 1e-12)
    assert (residual <= 1e-10).all()
    torch.testing.assert_close(adjoint / scale, dense, rtol=1e-9, atol=1e-10)
    wrong = adjoint.clone()
    wrong[:, 0] += 1e-3 * scale
    error = adjoint_residual(problem, found.y, found.a, wrong, scale * g)
    assert (error > 1e-6).all()
    assert (adjoint_residual(problem, found.y, found.a, 0 * g, 0 * g) == 0).all()


def test_the_residual_sees_each_equation_in_its_own_units() -> None:
    """An error of ``y`` beside a large ``a``, and one of a small ``a`` beside a large one."""
    for scale in (1e-150, 1e-22, 1.0, 1e60):
        c = vector(1e-20, 1.0)
        circuit = Circuit(scale * vector((1.0, 0.5)), c, 0.5 * ROTATION, POOL * (1e-40 / scale**2))
        problem = circuit.flatten()
        exact = solve_newton(problem, problem.input_drive, c.expand(1, 2), 1e-14, 30)
        assert exact.status == Status.CONVERGED
        for part, entry in (("y", 0), ("y", 1), ("a", 0), ("a", 1)):
            state = {"y": exact.y.clone(), "a": exact.a.clone()}
            state[part][0, entry] *= 1.0 + 1e-3
            assert 1e-4 < problem.relative_residual(**state) < 1e-2, (scale, part, entry)


def test_zero_and_infinity_have_a_length() -> None:
    x = torch.tensor([[0.0, 0.0], [3e-30, 4e-30], [3e30, 4e30], [1e-44, 0.0]])
    torch.testing.assert_close(
        length(x), torch.tensor([0.0, 5e-30, 5e30, 1e-44]), rtol=1e-6, atol=0.0
    )
    assert (x / size_of(x)).abs().amax() < 2
    assert length(torch.tensor([torch.inf, 1.0])).isinf()
    assert length(torch.tensor([torch.nan, 1.0])).isnan()
    huge = torch.tensor([3e200, 4e-200], dtype=DOUBLE)
    assert float(length(huge)) == 3e200
