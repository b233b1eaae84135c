"""No circuit is called stable that is not: verdicts against dense eigenvalues."""

import pytest
import torch

from deq_organics import Circuit, check_stability

DOUBLE = torch.float64


def compare(circuit: Circuit) -> int:
    """Check every verdict and eigenvalue; return how many circuits are unstable."""
    state = circuit.steady_state(tol=1e-9, on_failure="ignore", verify_stability=False)
    report = check_stability(circuit, state)
    spectrum = torch.linalg.eigvals(circuit.jacobian(state.y, state.a))
    leading, size = spectrum.real.amax(-1), spectrum.abs().amax(-1)
    clear = state.converged & (leading.abs() > 1e-9 * size)
    assert torch.equal(report.stable[clear], leading[clear] < 0)
    error = (report.leading_eigenvalue.real - leading).abs() / size
    assert (error[clear] <= 1e-6).all()
    return int((leading[clear] > 0).sum())


@pytest.mark.slow
def test_unstable_circuits_with_time_constants_over_three_decades() -> None:
    generator, n = torch.Generator().manual_seed(1), 48

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=DOUBLE)

    wr = 3 * torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=DOUBLE))[0]
    drive = torch.randn(32, n, generator=generator, dtype=DOUBLE)
    drive = torch.nn.functional.normalize(drive)
    tau_y, tau_a = (10 ** (3 * (uniform(n) - 0.5)) for _ in range(2))
    compare(Circuit(drive, 0.01, wr, uniform(n, n), tau_y, tau_a))


@pytest.mark.slow
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("n", [1, 2, 11, 12, 40, 63, 64])
def test_random_circuits(n: int, rectified: bool) -> None:
    generator = torch.Generator().manual_seed(n)
    # Large circuits with large weights take long to be given up: the benchmark draws their states.
    norms = (0.5, 1.0, 3.0, 5.0) if n < 40 else (0.5, 1.0, 0.9, 0.7)
    for decades, norm in zip((0, 2, 4, 5), norms, strict=True):
        matrix = torch.randn(n, n, generator=generator, dtype=DOUBLE)
        wr = norm * torch.linalg.qr(matrix)[0] if decades % 4 else norm * matrix / n**0.5
        drive = torch.randn(8 if n < 40 else 5, n, generator=generator, dtype=DOUBLE)
        drive = torch.nn.functional.normalize(drive)
        taus = 10 ** (decades * (torch.rand(2, n, generator=generator, dtype=DOUBLE) - 0.5))
        w = torch.rand(n, n, generator=generator, dtype=DOUBLE)
        compare(Circuit(drive, 0.05, wr, w, taus[0], taus[1], rectified=rectified))
