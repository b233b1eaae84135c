"""The C kernel's proofs that dissipation forms exceed a bound, against eigenvalues in float64."""

import numpy as np
import pytest
import torch
from _circuits import random_parameters
from torch import Tensor

from deq_organics import Circuit
from deq_organics.native import native_refusal
from deq_organics.stability import Verdict, native, verdicts
from deq_organics.stability.balanced import Balanced

pytestmark = pytest.mark.skipif(
    native_refusal(torch.device("cpu")) is not None, reason="no compiled library"
)

# On both sides of a vector, of a block of rows (6 or 12) and of a panel.
SIZES = (1, 2, 3, 5, 6, 7, 8, 9, 12, 13, 16, 17, 24, 31, 33, 48, 65)


def draw(n: int, circuits: int, own_weights: bool, seed: int) -> Balanced:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    lead = (circuits,) if own_weights else ()
    weights = normal(*lead, n, n) / n**0.5, normal(*lead, n, n).abs() / n
    factors = [normal(circuits, n) for _ in range(6)]
    decays = normal(1, n).abs(), normal(circuits, n).abs()
    return Balanced._make((*weights, *factors, *decays))


def forms(jacobian: Balanced, added: Tensor | None) -> Tensor:
    matrix = jacobian.map(torch.Tensor.double).matrix()
    form = -matrix - matrix.mT
    return form if added is None else form + added.double() @ added.double().mT


def moved(jacobian: Balanced, added: Tensor | None, target: Tensor) -> Balanced:
    """With decays that put the smallest eigenvalue of each form about where ``target`` says."""
    smallest = torch.from_numpy(np.linalg.eigvalsh(forms(jacobian, added).numpy())[:, 0])
    shift = (0.5 * (target - smallest)).float().unsqueeze(-1)
    return jacobian._replace(decay_y=jacobian.decay_y + shift, decay_a=jacobian.decay_a + shift)


@pytest.mark.parametrize("n", SIZES)
def test_a_proof_is_one(n: int) -> None:
    """Never above the bound where it is not, however close; above it where it clearly is."""
    distances = torch.tensor([-1.0, -1e-2, -1e-4, -1e-6, 0.0, 1e-6, 1e-4, 1.0, 3.0])
    for seed, own in enumerate((False, True)):
        for bound, count in ((0.0, 0), (0.04, 2)):
            jacobian = draw(n, len(distances), own, seed + 10 * count)
            added = torch.randn(len(distances), 2 * n, 2) if count else None
            jacobian = moved(jacobian, added, bound + distances)
            exact = np.linalg.eigvalsh(forms(jacobian, added).numpy())[:, 0]
            proved = native.exceeds(jacobian, bound, added)
            assert not (proved & torch.from_numpy(exact <= bound)).any()
            assert proved[-2:].all()


def test_no_circuit_depends_on_its_batch() -> None:
    jacobian = moved(draw(21, 40, True, 3), None, torch.linspace(-0.01, 0.01, 40))
    whole = native.exceeds(jacobian, 0.0)
    assert whole.any()
    assert not whole.all()
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(native.exceeds(jacobian, 0.0), whole)
    finally:
        torch.set_num_threads(threads)
    index = torch.tensor([39, 0, 20, 21, 5])
    assert torch.equal(native.exceeds(jacobian.select(index), 0.0), whole[index])
    # What a circuit leaves in the scratch memory says nothing of the next one.
    again = torch.stack(
        [native.exceeds(jacobian.select(torch.tensor([i])), 0.0) for i in range(40)]
    )
    assert torch.equal(again.squeeze(-1), whole)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", Balanced._fields)
def test_nothing_is_proved_of_what_is_not_finite(name: str, value: float) -> None:
    for last in (0, 16):
        jacobian = moved(draw(17, 3, True, 1), None, torch.ones(3))
        assert native.exceeds(jacobian, 0.0).all()
        broken = getattr(jacobian, name).expand(3, *getattr(jacobian, name).shape[1:]).clone()
        broken[1][..., last] = value
        found = native.exceeds(jacobian._replace(**{name: broken}), 0.0)
        assert found.tolist() == [True, False, True]


@pytest.mark.parametrize("singular_value", [0.9, 1.5])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_verdicts_are_those_of_dense_eigenvalues(
    singular_value: float, negative: bool, shared: bool
) -> None:
    """Stable and unstable ones, at states that are no fixed points too."""
    seen = set()
    for n in (12, 19, 40):
        given = random_parameters(
            (24,), n, shared=shared, singular_value=singular_value, dtype=torch.float32, seed=n
        )
        if negative:
            given["recurrent_weight"] = -given["recurrent_weight"] - 0.5 * torch.eye(n)
        problem = Circuit(**given, tau_y=torch.logspace(-1, 1, n)).flatten()
        y = 2.0 * torch.randn(24, n, generator=torch.Generator().manual_seed(n))
        y = y * torch.logspace(-2, 0.5, 24).unsqueeze(-1)
        a = 0.05 + torch.rand(24, n, generator=torch.Generator().manual_seed(n + 1))
        found = verdicts(problem, y, a)
        matrix = problem.to(torch.float64).jacobian(y.double(), a.double()).numpy()
        leading = np.linalg.eigvals(matrix).real.max(-1)
        assert torch.equal(found == Verdict.INSIDE, torch.from_numpy(leading < 0))
        seen |= set(found.tolist())
    assert seen == {int(Verdict.INSIDE), int(Verdict.OUTSIDE)}
