"""Linear response of circuits around their steady states: transfer function, spectra, covariance.

Near a steady state the deviation ``x`` of ``(y, a)`` obeys ``dx = J x dt + L dW``, with ``J`` the
circuit's Jacobian, ``L = D(noise_y, noise_a)`` and independent white noise ``dW`` in each of the
2n equations. Frequencies ``f`` are in cycles per unit of time (that of the time constants).
"""

import math
import warnings

import torch
from torch import Tensor

from ._validation import (
    as_float_tensor,
    check_broadcast,
    check_choice,
    check_finite,
    check_number,
    check_positive,
    check_same_device,
    physical,
)
from .circuit import Circuit
from .errors import SteadyStateWarning
from .lyapunov import solve_lyapunov
from .spectral_density import CrossSpectrum
from .steady_state import SteadyState

__all__ = ["cross_spectrum", "stationary_covariance", "transfer_function"]


def transfer_function(
    circuit: Circuit, frequency: Tensor, *, state: SteadyState | None = None
) -> Tensor:
    """``(2 pi i f I - J)^-1``: the response to a small sinusoidal term in each equation.

    A term ``Re(u exp(2 pi i f t))`` in ``(dy/dt, da/dt)`` moves ``(y, a)`` by
    ``Re(H u exp(2 pi i f t))``; for one in the input drive divide it by ``tau_y`` first.

    Args:
        circuit: The circuits.
        frequency: In cycles per unit of time, ``(F,)``, of either sign.
        state: Their steady state; None solves for it.

    Returns:
        Complex ``H``, ``(..., F, 2n, 2n)`` in the order ``(y, a)``, differentiable by the
        circuit's parameters; NaN, with a :class:`SteadyStateWarning`, for circuits without a
        stable steady state.

    Raises:
        TypeError: An argument is not of its type.
        ValueError: A shape, dtype, device or value does not fit; the message names the argument.
    """
    jacobian, _, stable = _stable_jacobian(circuit, state)
    frequency = _frequency(circuit, frequency)
    response = _respond(jacobian, frequency, torch.eye(2 * circuit.n).to(jacobian))
    return _nan_unless(stable[..., None, None, None], response)


def cross_spectrum(
    circuit: Circuit,
    frequency: Tensor,
    *,
    noise_y: Tensor | float = 1.0,
    noise_a: Tensor | float = 0.0,
    sided: str = "one",
    state: SteadyState | None = None,
) -> CrossSpectrum:
    """Spectra of ``(y, a)`` in the stationary state that small white noise keeps a circuit in.

    Args:
        circuit: The circuits.
        frequency: In cycles per unit of time, ``(F,)``; not negative if ``sided="one"``.
        noise_y: Standard deviation of the noise added to ``dy/dt``, per square root of time, at
            least 0: a number, ``(n,)`` or ``(..., n)``. For noise ``s dW`` in the input drive it
            is ``s / tau_y``.
        noise_a: The same for ``da/dt``.
        sided: ``"two"``, or ``"one"``: doubled at ``f > 0``, as in ``scipy.signal.welch``.
        state: Their steady state; None solves for it.

    Returns:
        The densities, differentiable by the noise and the circuit's parameters, NaN as in
        :func:`transfer_function`. It takes memory for some ``8 F n^2`` complex numbers a circuit.

    Raises:
        TypeError: An argument is not of its type.
        ValueError: A shape, dtype, device or value does not fit; the message names the argument.
    """
    check_choice("sided", sided, ("one", "two"))
    jacobian, _, stable = _stable_jacobian(circuit, state)
    frequency = _frequency(circuit, frequency)
    response = _respond(jacobian, frequency, _noise(circuit, noise_y, noise_a))
    density = response.conj() @ response.mT
    if sided == "one":
        check_positive("frequency", frequency, allow_zero=True)
        density = density * torch.where(frequency > 0, 2.0, 1.0)[:, None, None]
    density = _nan_unless(stable[..., None, None, None], density)
    return CrossSpectrum(frequency, density, sided)


def stationary_covariance(
    circuit: Circuit,
    *,
    noise_y: Tensor | float = 1.0,
    noise_a: Tensor | float = 0.0,
    state: SteadyState | None = None,
) -> Tensor:
    """Covariance ``C`` of ``(y, a)`` under small white noise: ``J C + C J^T + L L^T = 0``.

    Arguments and errors are those of :func:`cross_spectrum`, of whose two-sided density it is the
    integral over all frequencies; ``O(n^3)`` operations a circuit.

    Returns:
        ``C``, ``(..., 2n, 2n)`` in the order ``(y, a)``, symmetric, differentiable and NaN as
        :func:`cross_spectrum`.
    """
    jacobian, eigenvalues, stable = _stable_jacobian(circuit, state)
    covariance = solve_lyapunov(jacobian, _noise(circuit, noise_y, noise_a), eigenvalues)
    return _nan_unless(stable[..., None, None], covariance)


def _stable_jacobian(circuit: Circuit, state: SteadyState | None) -> tuple[Tensor, Tensor, Tensor]:
    """Jacobian at each stable steady state (else ``-I``), its eigenvalues, where there is one."""
    if not isinstance(circuit, Circuit):
        raise TypeError(f"circuit: got {type(circuit).__name__}, expected a Circuit")
    if state is None:
        tol = min(1e-6, 512.0 * torch.finfo(circuit.input_drive.dtype).eps)
        state = circuit.steady_state(tol=tol, on_failure="ignore")
    elif not isinstance(state, SteadyState):
        raise TypeError(f"state: got {type(state).__name__}, expected a SteadyState")
    shape, found = (*circuit.batch_shape, circuit.n), state.converged
    if tuple(state.y.shape) != shape:
        raise ValueError(f"state: got shape {tuple(state.y.shape)}, expected {shape} as circuit")
    # NaN would enter the gradients of weights that all circuits share, even multiplied by zero.
    y, a = (torch.where(found.unsqueeze(-1), part, 1.0) for part in (state.y, state.a))
    jacobian = circuit.jacobian(y, a)
    eigenvalues = torch.linalg.eigvals(jacobian.detach().double())
    stable = found & (eigenvalues.real < 0).all(-1)
    if bad := int((~physical(stable)).sum()):
        unsettled = int((~physical(found)).sum())
        warnings.warn(
            f"no linear response of {bad} of {found.numel()} circuits ({unsettled}: no steady "
            f"state; {bad - unsettled}: an unstable one). Their rows are NaN.",
            SteadyStateWarning,
            stacklevel=3,
        )
    jacobian = torch.where(stable[..., None, None], jacobian, -torch.eye(2 * circuit.n).to(y))
    return jacobian, torch.where(stable.unsqueeze(-1), eigenvalues, -1.0), stable


def _respond(jacobian: Tensor, frequency: Tensor, factor: Tensor) -> Tensor:
    """``(2 pi i f I - J)^-1 L``, complex ``(..., F, 2n, k)``, for ``L`` of ``(..., 2n, k)``."""
    identity = torch.eye(jacobian.shape[-1]).to(jacobian)
    rotation = torch.complex(torch.zeros_like(frequency), 2.0 * math.pi * frequency)
    matrix = rotation[:, None, None] * identity - jacobian.unsqueeze(-3)
    # In full, since torch would take a right side of some shapes for a batch of vectors.
    batch = torch.broadcast_shapes(matrix.shape[:-2], (*factor.shape[:-2], 1))
    right = factor.unsqueeze(-3).to(matrix.dtype).expand(*batch, *factor.shape[-2:])
    return torch.linalg.solve(matrix, right)


def _noise(circuit: Circuit, noise_y: Tensor | float, noise_a: Tensor | float) -> Tensor:
    """``L``, ``(..., 2n, k)``: only the columns of neurons that may receive noise."""
    n, batch = circuit.n, circuit.batch_shape
    columns = torch.eye(2 * n).to(circuit.input_drive).split(n, -1)
    blocks = [columns[0][:, :0]]
    given = (("noise_y", noise_y), ("noise_a", noise_a))
    for (name, value), column in zip(given, columns, strict=True):
        if isinstance(value, Tensor):
            value = _like_circuit(name, value, circuit)
            check_broadcast(name, value.shape[-1:], (n,), f"a number, ({n},) or (..., {n})")
            check_positive(name, value, allow_zero=True)
            try:
                batch = torch.broadcast_shapes(batch, value.shape[:-1])
            except RuntimeError:
                raise ValueError(
                    f"{name}: got shape {tuple(value.shape)}, expected leading dimensions that "
                    f"broadcast with {tuple(batch)}"
                ) from None
            blocks.append(column * (value.unsqueeze(-2) if value.ndim else value))
        elif number := check_number(name, value, low=0.0):
            blocks.append(column * number)
    return torch.cat([block.expand(*batch, *block.shape[-2:]) for block in blocks], -1)


def _frequency(circuit: Circuit, frequency: Tensor) -> Tensor:
    frequency = _like_circuit("frequency", frequency, circuit)
    if frequency.ndim != 1 or frequency.numel() == 0:
        raise ValueError(f"frequency: got shape {tuple(frequency.shape)}, expected (F,), F >= 1")
    check_finite("frequency", frequency)
    return frequency


def _like_circuit(name: str, value: Tensor, circuit: Circuit) -> Tensor:
    drive, tensor = circuit.input_drive, as_float_tensor(name, value)
    check_same_device("input_drive", drive, name, tensor)
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    if tensor.dtype != drive.dtype:
        raise ValueError(f"{name}: got {tensor.dtype}, expected {drive.dtype} as the circuit")
    return tensor


def _nan_unless(stable: Tensor, values: Tensor) -> Tensor:
    nan = complex(math.nan, math.nan) if values.is_complex() else math.nan
    return torch.where(stable, values, nan)
