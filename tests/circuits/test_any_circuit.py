"""Circuits of any kind: by their equations alone they give what the fast paths give."""

from typing import Any, cast

import numpy as np
import pytest
import torch
from _family_draws import DOUBLE, KINDS, Bare, draw
from scipy.integrate import solve_ivp
from torch import Tensor

from deq_organics import (
    Circuit,
    DynamicalCircuit,
    Status,
    SteadyStateWarning,
    check_stability,
    cross_spectrum,
    draw_circuits,
    find_steady_state,
    simulate,
    stationary_covariance,
)
from deq_organics.circuits.system import System
from deq_organics.stability.matrices import rightmost, side_of_matrices


def close(one: Tensor, other: Tensor, bound: float = 1e-9) -> None:
    assert float((one - other).abs().max() / other.abs().max()) <= bound


def test_equals_the_fast_path() -> None:
    generator = torch.Generator().manual_seed(0)
    known = draw_circuits(20, 3, generator=generator)
    fast = known.steady_state(tol=1e-13)
    found = find_steady_state(Bare(known))
    close(found["y"], fast.y)
    close(found["a"], fast.a)
    report, other = check_stability(Bare(known), found), check_stability(known, fast)
    close(report.leading_eigenvalue, other.leading_eigenvalue, 1e-7)
    assert bool((report.stable == other.stable).all())
    frequency = torch.linspace(0.0, 1.0, 5, dtype=DOUBLE)
    spectrum = cross_spectrum(Bare(known), frequency, noise={"y": 1.0, "a": 0.5})
    expected = cross_spectrum(known, frequency, noise_y=1.0, noise_a=0.5)
    close(spectrum.density, expected.density)
    close(
        stationary_covariance(Bare(known), noise={"y": 1.0, "a": 0.5}),
        stationary_covariance(known, noise_y=1.0, noise_a=0.5),
    )


def test_dispatches_a_circuit_to_its_fast_path() -> None:
    known = draw_circuits(3, 2, generator=torch.Generator().manual_seed(0))
    assert isinstance(known, DynamicalCircuit)
    found: Any = find_steady_state(known)
    assert torch.equal(found.y, known.steady_state().y)
    state = {"y": torch.zeros(2, dtype=DOUBLE), "a": torch.ones(2, dtype=DOUBLE)}
    followed: Any = find_steady_state(known, start=state)
    assert torch.equal(followed.y, known.steady_state(start=(state["y"], state["a"])).y)


@pytest.mark.slow
def test_derivatives_equal_those_of_the_fast_path() -> None:
    known = draw_circuits(2, 2, generator=torch.Generator().manual_seed(1))
    tensors = [tensor.clone().requires_grad_() for tensor in known.parameters.tensors()][:4]

    def generic(*given: Any) -> Tensor:
        return find_steady_state(Bare(Circuit(*given)), tol=1e-12).state

    def fast(*given: Any) -> Tensor:
        found = Circuit(*given).steady_state(tol=1e-13)
        return torch.cat([found.y, found.a], -1)

    weight = torch.arange(1.0, 5.0, dtype=DOUBLE)
    one, other = (
        torch.autograd.grad((solve(*tensors) * weight).sum(), tensors) for solve in (generic, fast)
    )
    for mine, theirs in zip(one, other, strict=True):
        close(mine, theirs)
    fixed = [tensor.detach() for tensor in tensors[1:]]
    for transform in (torch.func.jacfwd, torch.func.jacrev, torch.func.hessian):
        mine, theirs = (
            transform(lambda d, f=f: (f(d, *fixed).square() * weight).sum())(tensors[0].detach())
            for f in (generic, fast)
        )
        close(mine, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_family_solves_and_differentiates(kind: str) -> None:
    circuit = draw(kind, 1, 3)
    names = {"wilson-cowan": ("drive_e", "weight_ei"), "ssn": ("drive_e", "weight")}.get(
        kind, ("normalization_weight",)
    )
    values = [getattr(circuit, name).clone().requires_grad_() for name in names]

    def solve(*given: Tensor) -> Tensor:
        fields = {**vars(circuit), **dict(zip(names, given, strict=True))}
        return find_steady_state(type(circuit)(**fields), tol=1e-12, on_failure="error").state

    assert torch.autograd.gradcheck(
        solve, values, check_forward_ad=kind != "feedback", fast_mode=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_family_settles_where_a_stiff_integration_does(kind: str) -> None:
    circuit = draw(kind, 3)
    found = find_steady_state(circuit, start="rest", on_failure="ignore")
    assert bool((found.status != Status.MAX_ITERATIONS).all())
    assert bool(found.converged.any())
    system = System(circuit)
    span = 3000.0 if kind == "ssn" else 400.0
    for row in found.converged.nonzero().squeeze(-1).tolist():

        def field(_: float, state: np.ndarray, row: int = row) -> np.ndarray:
            full = system.rest.index_copy(0, torch.tensor([row]), torch.tensor(state)[None])
            return system.field(full)[row].numpy()

        begin = system.rest[row].numpy()
        last = solve_ivp(field, (0.0, span), begin, "LSODA", rtol=1e-9, atol=1e-11).y[:, -1]
        np.testing.assert_allclose(found.state[row].numpy(), last, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_jacobian_equals_finite_differences(kind: str) -> None:
    system = System(draw(kind, 5))
    state = system.rest + 0.1 + 0.3 * torch.rand(system.rest.shape, dtype=DOUBLE)
    jacobian = system.jacobian(state)
    step = 1e-6
    for column in range(system.width):
        shift = torch.zeros(system.width, dtype=DOUBLE)
        shift[column] = step
        slope = (system.field(state + shift) - system.field(state - shift)) / (2.0 * step)
        torch.testing.assert_close(jacobian[..., column], slope, rtol=1e-6, atol=1e-6)
    direction = torch.randn(5, system.width, dtype=DOUBLE)
    products = system.linearize(state)
    torch.testing.assert_close(
        products.product(direction), (jacobian @ direction.unsqueeze(-1)).squeeze(-1)
    )
    torch.testing.assert_close(
        products.transposed(direction), (jacobian.mT @ direction.unsqueeze(-1)).squeeze(-1)
    )


class Oscillator:
    """Two neurons that oscillate about 0 with amplitude 1, one that grows, or one at rest."""

    parts = ("x",)

    def __init__(self, growth: float) -> None:
        self.growth = torch.tensor(growth, dtype=DOUBLE)

    def rest(self) -> tuple[Tensor]:
        return (torch.tensor((0.5, 0.0), dtype=DOUBLE),)

    def vector_field(self, x: Tensor) -> tuple[Tensor]:
        turned = torch.stack([-x[..., 1], x[..., 0]], -1)
        return (turned + x * (self.growth - x.square().sum(-1, keepdim=True)),)


@pytest.mark.slow
def test_tells_what_does_not_settle() -> None:
    with pytest.warns(SteadyStateWarning, match="1 of 1 circuits"):
        found = find_steady_state(Oscillator(1.0))
    assert int(found.status) == Status.NOT_SETTLED
    assert bool(found.state.isnan().all())
    assert bool(find_steady_state(Oscillator(-1.0)).converged)
    # At the unstable fixed point itself the dynamics stay.
    origin = [torch.zeros(2, dtype=DOUBLE)]
    stuck = find_steady_state(Oscillator(1.0), start=origin, on_failure="ignore")
    assert int(stuck.status) == Status.UNSTABLE
    report = check_stability(Oscillator(1.0), origin)
    assert not bool(report.stable)
    assert complex(report.leading_eigenvalue) == pytest.approx(1.0 + 1.0j)
    assert bool(check_stability(Oscillator(1.0), [torch.ones(2, dtype=DOUBLE)]).rejected)


@pytest.mark.slow
def test_a_bad_circuit_changes_no_other() -> None:
    good, bad = draw("ssn", 3), draw("ssn", 3)
    weight = bad.weight.clone()
    weight[1, :3, :3] = 20.0
    mixed = type(bad)(**{**vars(bad), "weight": weight})
    found, alone = find_steady_state(mixed, on_failure="ignore"), find_steady_state(good)
    assert int(found.status[1]) == Status.DIVERGED
    torch.testing.assert_close(found.state[[0, 2]], alone.state[[0, 2]], rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_simulation_equals_that_of_the_circuit() -> None:
    known = draw_circuits(3, 2, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.0, 5.0, 4, dtype=DOUBLE)
    y, a = simulate(known, t, rtol=1e-10, method="rodas5p")
    for method in ("rodas5p", "dopri5"):
        found: Any = simulate(Bare(known), t, rtol=1e-10, method=method)
        close(found["y"], y, 1e-8)
        close(found["a"], a, 1e-8)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda c: find_steady_state(cast(Any, 3)), TypeError, "circuit: got int"),
        (lambda c: find_steady_state(c, start="home"), ValueError, "start: got 'home'"),
        (lambda c: find_steady_state(c, start={"q": c.rest()[0]}), ValueError, "start: got parts"),
        (lambda c: find_steady_state(c, start=c.rest()[:1]), ValueError, "start: got 1 parts"),
        (lambda c: find_steady_state(c, tol=-1.0), ValueError, "tol: got -1"),
        (lambda c: simulate(c, torch.arange(2.0), y0=c.rest()[0]), TypeError, "y0: got"),
        (lambda c: cross_spectrum(c, torch.ones(2), noise={"q": 1.0}), ValueError, "noise: got"),
    ],
)
def test_bad_arguments(call: object, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call(draw("ssn", 2))  # type: ignore[operator]


def test_eigenvalues_of_badly_scaled_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(200, 5, 5, generator=generator, dtype=DOUBLE) - 2.5 * torch.eye(5)
    scale = 10.0 ** (40.0 * torch.rand(200, 5, generator=generator, dtype=DOUBLE) - 20.0)
    scaled = matrix / scale.unsqueeze(-1) * scale.unsqueeze(-2)
    expected = np.linalg.eigvals(matrix.numpy()).real.max(-1)
    verdict = side_of_matrices(scaled).numpy()
    assert bool(((verdict == 1) <= (expected < 0)).all())
    assert bool(((verdict == -1) <= (expected > 0)).all())
    assert (verdict != 0).mean() > 0.95
    np.testing.assert_allclose(rightmost(scaled).real.numpy(), expected, rtol=1e-6, atol=1e-9)
    broken = torch.stack([torch.full((2, 2), torch.nan, dtype=DOUBLE), -torch.eye(2, dtype=DOUBLE)])
    assert side_of_matrices(broken).tolist() == [0, 1]
    assert bool(rightmost(broken)[0].isnan())
