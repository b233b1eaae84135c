"""Random circuits of every kind, and a circuit of which nothing is known but its equations."""

from typing import Any

import torch
from torch import Tensor

from deq_organics import SSN, AmplifierCircuit, Circuit, FeedbackArea, WilsonCowan

DOUBLE = torch.float64


class Bare:
    """A `Circuit` that the library cannot recognize."""

    parts = ("y", "a")

    def __init__(self, circuit: Circuit) -> None:
        self.circuit = circuit

    def rest(self) -> tuple[Tensor, Tensor]:
        return self.circuit.rest()

    def vector_field(self, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        known = self.circuit
        residual_y, residual_a = known.parameters.residual(y, a)
        return residual_y / known.tau_y, residual_a / known.tau_a


def draw(kind: str, batch: int, n: int = 3, seed: int = 0) -> Any:
    """Random circuits of a kind, most of which have a stable steady state."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=generator, dtype=DOUBLE)

    k = n - 1
    if kind == "wilson-cowan":
        return WilsonCowan(
            4.0 * uniform(n),
            2.0 * uniform(k),
            16.0 * uniform(n, n) / n,
            12.0 * uniform(n, k) / k,
            15.0 * uniform(k, n) / n,
            3.0 * uniform(k, k) / k,
            tau_e=1.0 + uniform(n),
            tau_i=1.0 + uniform(k),
        )
    if kind == "ssn":
        return SSN(2.0 * uniform(n), uniform(k), uniform(n + k, n + k) / n)
    if kind == "amplifier":
        return AmplifierCircuit(
            0.8 * uniform(n) - 0.4,
            0.1 + 0.3 * uniform(n),
            None,
            uniform(n, n) / n,
            alpha=5.0 * uniform(1),
            tau_y=1.0 + uniform(n),
            tau_u=1.0 + uniform(n),
            tau_a=1.0 + uniform(n),
        )
    recurrent = 2.0 * uniform(n, n) - 1.0
    recurrent = recurrent / torch.linalg.matrix_norm(recurrent, 2, keepdim=True)
    return FeedbackArea(
        0.2 + uniform(n),
        recurrent,
        uniform(n, n),
        feedback=uniform(n),
        alpha=10.0 * uniform(1),
        feedback_gain=0.25 + uniform(1),
    )


KINDS = ("wilson-cowan", "ssn", "amplifier", "feedback")
