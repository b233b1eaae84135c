"""The circuit's trajectories in time, by torchdiffeq."""

from typing import Any

import torch
from torch import Tensor

from ._validation import as_float_tensor, check_finite
from .circuit import Circuit

__all__ = ["simulate"]


def simulate(
    circuit: Circuit,
    t: Tensor,
    y0: Tensor | None = None,
    a0: Tensor | None = None,
    *,
    method: str = "dopri5",
    rtol: float = 1e-6,
    atol: float = 1e-8,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Integrate the circuit's equations; differentiable by its parameters and the start.

    Args:
        circuit: The circuits to simulate.
        t: Increasing times ``(T,)``, in the unit of the time constants.
        y0: Start of ``y``, broadcastable to ``(..., n)``; rest (zero) if left out.
        a0: Start of ``a``; rest (the semisaturation) if left out.
        method: Any method of ``torchdiffeq.odeint``; ``"scipy_solver"`` with
            ``options={"solver": "Radau"}`` for stiff circuits.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        **options: Passed on to ``torchdiffeq.odeint``.

    Returns:
        ``y`` and ``a`` at the times ``t``, each ``(T, ..., n)``.
    """
    from torchdiffeq import odeint

    as_float_tensor("t", t)
    check_finite("t", t)
    if t.ndim != 1 or t.numel() < 2 or not bool((t[1:] > t[:-1]).all()):
        raise ValueError(f"t: got shape {tuple(t.shape)}, expected (T,) increasing times, T >= 2")
    shape = (*circuit.batch_shape, circuit.n)
    drive = circuit.input_drive
    start_y = torch.zeros_like(drive) if y0 is None else as_float_tensor("y0", y0)
    start_a = circuit.semisaturation if a0 is None else as_float_tensor("a0", a0)
    start = []
    for name, tensor in (("y0", start_y), ("a0", start_a)):
        check_finite(name, tensor)
        try:
            start.append(tensor.expand(shape))
        except RuntimeError:
            raise ValueError(
                f"{name}: got shape {tuple(tensor.shape)}, expected to broadcast to {shape}"
            ) from None

    def flow(_: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return circuit.vector_field(*state)

    y, a = odeint(flow, tuple(start), t.to(drive), method=method, rtol=rtol, atol=atol, **options)
    return y, a
