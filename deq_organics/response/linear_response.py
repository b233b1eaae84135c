"""Linear response of circuits around their steady states: transfer function, spectra, covariance.

Near a steady state the deviation ``x`` of ``(y, a)`` obeys ``dx = J x dt + L dW``, with ``J`` the
circuit's Jacobian, ``L = D(noise_y, noise_a)`` and independent white noise ``dW`` in each of the
2n equations. Frequencies ``f`` are in cycles per unit of time (that of the time constants).
"""

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..checks import (
    check_broadcast,
    check_choice,
    check_finite,
    check_number,
    check_positive,
    physical,
)
from ..circuit import Circuit
from ..circuits import DynamicalCircuit
from ..errors import SteadyStateWarning
from ..memory import check_memory
from ..steady_state.record import SteadyState
from .any_circuit import NoiseByPart, joint_covariance, joint_spectrum
from .arguments import check_circuit, like_circuit
from .lyapunov import solve_lyapunov
from .spectral_density import CrossSpectrum

__all__ = ["cross_spectrum", "stationary_covariance", "transfer_function"]

Values = Tensor | npt.NDArray[np.floating]

# Tensors of the result's size that are alive at once: of spectra, and of covariances.
_SPECTRA, _COVARIANCES = 3, 9
# Relative residual above which a state is not taken for a fixed point.
_LARGEST_RESIDUAL = 1e-3


def transfer_function(
    circuit: Circuit, frequency: Values, *, state: SteadyState | None = None
) -> Tensor:
    """``(2 pi i f I - J)^-1``: the response to a small sinusoidal term in each equation.

    A term ``Re(u exp(2 pi i f t))`` in ``(dy/dt, da/dt)`` moves ``(y, a)`` by
    ``Re(H u exp(2 pi i f t))``; for one in the input drive divide it by ``tau_y`` first.

    Args:
        circuit: The circuits.
        frequency: In cycles per unit of time, ``(F,)``, of either sign; a tensor or numpy array.
        state: Their steady state; None solves for it.

    Returns:
        Complex ``H``, ``(..., F, 2n, 2n)`` in the order ``(y, a)``, differentiable by the
        circuit's parameters; NaN, with a :class:`SteadyStateWarning`, for circuits without a
        stable steady state.

    Raises:
        TypeError: An argument is not of its type.
        ValueError: A shape, dtype, device or value does not fit; the message names the argument.
        MemoryError: The result does not fit into memory.
    """
    check_circuit(circuit)
    points = _frequency(circuit, frequency)
    _check_memory("transfer_function", circuit, points.numel())
    jacobian, _, stable = _stable_jacobian(circuit, state)
    response = _respond(jacobian, points.double(), _identity(jacobian))
    response = _nan_unless(stable[..., None, None, None], response)
    return response.to(circuit.input_drive.dtype.to_complex())


def cross_spectrum(
    circuit: Circuit | DynamicalCircuit,
    frequency: Values,
    *,
    noise: NoiseByPart | None = None,
    noise_y: Values | float = 1.0,
    noise_a: Values | float = 0.0,
    sided: str = "one",
    state: Any = None,
) -> CrossSpectrum:
    """Spectra of ``(y, a)`` in the stationary state that small white noise keeps a circuit in.

    Args:
        circuit: The circuits.
        frequency: In cycles per unit of time, ``(F,)``; not negative if ``sided="one"``.
        noise: For circuits of another kind than :class:`Circuit`: the standard deviation of the
            noise added to each part of the state by name, ``{"y": 1.0}``, or one number for all.
        noise_y: For a :class:`Circuit`: standard deviation of the noise added to ``dy/dt``,
            per square root of time, at least 0: a number, ``(n,)`` or ``(..., n)``, whose leading
            dimensions are those of the
            circuits (never frequencies or noise of several strengths: for these take several
            circuits). For noise ``s dW`` in the input drive it is ``s / tau_y``.
        noise_a: The same for ``da/dt``.
        sided: ``"two"``, or ``"one"``: doubled at ``f > 0``, as in ``scipy.signal.welch``.
        state: Their steady state; None solves for it.

    Returns:
        The densities, differentiable by the noise and the circuit's parameters, NaN as in
        :func:`transfer_function`. It takes memory for some ``12 F n^2`` complex128 numbers
        a circuit.

    Raises:
        TypeError: An argument is not of its type.
        ValueError: A shape, dtype, device or value does not fit; the message names the argument.
        MemoryError: The result does not fit into memory.
    """
    if not isinstance(circuit, Circuit) and isinstance(circuit, DynamicalCircuit):
        given = 1.0 if noise is None else noise
        return joint_spectrum(circuit, frequency, noise=given, sided=sided, state=state)
    circuit = check_circuit(circuit)
    check_choice("sided", sided, ("one", "two"))
    points = _frequency(circuit, frequency)
    factor, strength = _noise(circuit, noise_y, noise_a)
    if sided == "one":
        check_positive("frequency", points, allow_zero=True)
    _check_memory("cross_spectrum", circuit, points.numel())
    jacobian, _, stable = _stable_jacobian(circuit, state)
    response = _respond(jacobian, points.double(), factor)
    # Each component in a unit of its own, for the squares of small ones leave the dtype's range.
    size = response.detach().abs().amax(-1, keepdim=True)
    size = torch.where(size > torch.finfo(size.dtype).tiny, size, 1.0)
    response = response / size
    unit = size * strength.unsqueeze(-3)
    density = unit * (unit.mT * (response.conj() @ response.mT))
    if sided == "one":
        density = density * (1.0 + (points > 0).to(density.dtype))[:, None, None]
    density = _nan_unless(stable[..., None, None, None], density)
    dtype = circuit.input_drive.dtype.to_complex()
    return CrossSpectrum(points, density.to(dtype), sided, response.to(dtype))


def stationary_covariance(
    circuit: Circuit | DynamicalCircuit,
    *,
    noise: NoiseByPart | None = None,
    noise_y: Values | float = 1.0,
    noise_a: Values | float = 0.0,
    state: Any = None,
) -> Tensor:
    """Covariance ``C`` of ``(y, a)`` under small white noise: ``J C + C J^T + L L^T = 0``.

    Arguments and errors are those of :func:`cross_spectrum`, of whose two-sided density it is the
    integral over all frequencies; ``O(n^3)`` operations a circuit.

    Returns:
        ``C``, ``(..., 2n, 2n)`` in the order ``(y, a)``, symmetric, differentiable and NaN as
        :func:`cross_spectrum`.
    """
    if not isinstance(circuit, Circuit) and isinstance(circuit, DynamicalCircuit):
        given = 1.0 if noise is None else noise
        return joint_covariance(circuit, noise=given, state=state)
    circuit = check_circuit(circuit)
    factor, strength = _noise(circuit, noise_y, noise_a)
    _check_memory("stationary_covariance", circuit, None)
    jacobian, eigenvalues, stable = _stable_jacobian(circuit, state)
    covariance = solve_lyapunov(jacobian, factor, eigenvalues)
    covariance = _nan_unless(stable[..., None, None], strength * (strength * covariance))
    return covariance.to(circuit.input_drive.dtype)


def _stable_jacobian(circuit: Circuit, state: SteadyState | None) -> tuple[Tensor, Tensor, Tensor]:
    """Jacobian at each stable steady state (else ``-I``), its eigenvalues, where there is one.

    In double precision: what stiff circuits do slowly is lost in the rounding of what is fast.
    """
    if state is None:
        tol = min(1e-6, 512.0 * torch.finfo(circuit.input_drive.dtype).eps)
        state = circuit.steady_state(tol=tol, on_failure="ignore")
    elif not isinstance(state, SteadyState):
        raise TypeError(f"state: got {type(state).__name__}, expected a SteadyState")
    shape, found = (*circuit.batch_shape, circuit.n), state.converged
    for part in (state.y, state.a):
        if tuple(part.shape) != shape:
            raise ValueError(f"state: got shape {tuple(part.shape)}, expected {shape} as circuit")
    double = circuit.to(torch.float64)
    fixed = found & _is_fixed_point(double, state)
    # NaN would enter the gradients of weights that all circuits share, even multiplied by zero.
    y, a = (torch.where(fixed.unsqueeze(-1), part, 1.0) for part in (state.y, state.a))
    jacobian = double.jacobian(y.double(), a.double())
    eigenvalues = torch.linalg.eigvals(jacobian.detach())
    stable = fixed & (eigenvalues.real < 0).all(-1)
    if bad := int((~physical(stable)).sum()):
        missing, moving = (int((~physical(kind)).sum()) for kind in (found, fixed))
        reasons = [f"{missing}: no steady state"]
        if moving > missing:
            reasons.append(f"{moving - missing}: the given state is no fixed point")
        reasons.append(f"{bad - moving}: an unstable one")
        warnings.warn(
            f"no linear response of {bad} of {found.numel()} circuits ({'; '.join(reasons)}). "
            "Their rows are NaN.",
            SteadyStateWarning,
            stacklevel=3,
        )
    jacobian = torch.where(stable[..., None, None], jacobian, -_identity(jacobian))
    return jacobian, torch.where(stable.unsqueeze(-1), eigenvalues, -1.0), stable


@torch.no_grad()
def _is_fixed_point(circuit: Circuit, state: SteadyState) -> Tensor:
    """Whether the equations hold at a state, whoever made it, ``(...)``."""
    y, a = (part.double().reshape(-1, circuit.n) for part in (state.y, state.a))
    residual = circuit.flatten().relative_residual(y, a)
    return (residual <= _LARGEST_RESIDUAL).reshape(circuit.batch_shape)


def _respond(jacobian: Tensor, frequency: Tensor, factor: Tensor) -> Tensor:
    """``(2 pi i f I - J)^-1 L``, complex ``(..., F, 2n, k)``, for ``L`` of ``(..., 2n, k)``."""
    identity = _identity(jacobian)
    rotation = torch.complex(torch.zeros_like(frequency), 2.0 * math.pi * frequency)
    matrix = rotation[:, None, None] * identity - jacobian.unsqueeze(-3)
    # In full, since torch would take a right side of some shapes for a batch of vectors.
    batch = torch.broadcast_shapes(matrix.shape[:-2], (*factor.shape[:-2], 1))
    right = factor.unsqueeze(-3).to(matrix.dtype).expand(*batch, *factor.shape[-2:])
    return torch.linalg.solve(matrix, right)


def _noise(
    circuit: Circuit, noise_y: Values | float, noise_a: Values | float
) -> tuple[Tensor, Tensor]:
    """``L`` in units of its largest entry, ``(..., 2n, k)``, and that entry, ``(..., 1, 1)``.

    It has only the columns of neurons that may receive noise.
    """
    n, batch = circuit.n, circuit.batch_shape
    columns = _identity(circuit.input_drive, 2 * n).split(n, -1)
    blocks = []
    given = (("noise_y", noise_y), ("noise_a", noise_a))
    for (name, value), column in zip(given, columns, strict=True):
        if isinstance(value, Tensor | np.ndarray):
            tensor = like_circuit(name, value, circuit)
            check_broadcast(name, tensor.shape[-1:], (n,), f"a number, ({n},) or (..., {n})")
            _check_leading(name, tensor, batch)
            check_positive(name, tensor, allow_zero=True)
            blocks.append(column * (tensor.unsqueeze(-2) if tensor.ndim else tensor))
        elif number := check_number(name, value, low=0.0):
            blocks.append(column * number)
    blocks = blocks or [torch.zeros_like(columns[0][:, :1])]
    lead = torch.broadcast_shapes(*(block.shape[:-2] for block in blocks))
    factor = torch.cat([block.expand(*lead, *block.shape[-2:]) for block in blocks], -1).double()
    largest = factor.detach().flatten(-2).amax(-1)[..., None, None]
    largest = torch.where(largest > 0, largest, 1.0)
    return factor / largest, largest


def _check_leading(name: str, tensor: Tensor, batch: torch.Size) -> None:
    try:
        fits = torch.broadcast_shapes(tensor.shape[:-1], batch) == batch
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name}: got shape {tuple(tensor.shape)}, expected leading dimensions, which are "
            f"circuits, that broadcast with {tuple(batch)} and do not enlarge it"
        )


def _frequency(circuit: Circuit, frequency: Values) -> Tensor:
    points = like_circuit("frequency", frequency, circuit)
    if points.ndim != 1 or points.numel() == 0:
        raise ValueError(f"frequency: got shape {tuple(points.shape)}, expected (F,), F >= 1")
    check_finite("frequency", points)
    return points


def _check_memory(function: str, circuit: Circuit, frequencies: int | None) -> None:
    """Refuse a result of ``(2n, 2n)`` per circuit and, unless None, frequency."""
    drive, size = circuit.input_drive, 2 * circuit.n
    shape: tuple[int, ...] = (*circuit.batch_shape, size, size)
    dtype, copies = torch.float64, _COVARIANCES
    if frequencies is not None:
        shape = (*circuit.batch_shape, frequencies, size, size)
        dtype, copies = torch.complex128, _SPECTRA
    check_memory(f"{function}: a result", shape, dtype, drive.device, copies)


def _identity(like: Tensor, size: int | None = None) -> Tensor:
    size = like.shape[-1] if size is None else size
    return torch.eye(size, dtype=like.dtype, device=like.device)


def _nan_unless(stable: Tensor, values: Tensor) -> Tensor:
    nan = complex(math.nan, math.nan) if values.is_complex() else math.nan
    return torch.where(stable, values, nan)
