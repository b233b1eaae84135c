"""Linear response of circuits around their steady states: transfer function, spectra, covariance.

Near a steady state the deviation ``x`` of ``(y, a)`` obeys ``dx = J x dt + L dW``, with ``J`` the
circuit's Jacobian and independent white noise ``dW``, of which ``L`` says where it enters; noise
of another colour stands in place of ``dW`` likewise. Frequencies ``f`` are in cycles per unit of
time (that of the time constants).
"""

import math
from collections.abc import Sequence
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
)
from ..circuit import Circuit
from ..circuits import DynamicalCircuit
from ..memory import check_memory
from ..steady_state.record import SteadyState
from .any_circuit import NoiseByPart, joint_covariance, joint_spectrum
from .arguments import check_circuit, check_leading, like_circuit
from .coloured import coloured_covariance, refuse_samples, respond
from .lyapunov import solve_lyapunov
from .noise import Noise, as_noises
from .noise_sources import Source, amplitudes, joint_factor, sources_of
from .spectral_density import CrossSpectrum
from .working_point import WorkingPoint, working_point

__all__ = ["cross_spectrum", "stationary_covariance", "transfer_function"]

Values = Tensor | npt.NDArray[np.floating]

# Tensors of the result's size that are alive at once: of spectra, and of covariances.
_SPECTRA, _COVARIANCES = 3, 9


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
    point = working_point(circuit, state)
    response = respond(point.jacobian, points.double(), _identity(point.jacobian))
    response = _nan_unless(point.stable[..., None, None, None], response)
    return response.to(circuit.input_drive.dtype.to_complex())


def cross_spectrum(
    circuit: Circuit | DynamicalCircuit,
    frequency: Values,
    *,
    noise: Noise | Sequence[Noise] | NoiseByPart | None = None,
    noise_y: Values | float = 1.0,
    noise_a: Values | float = 0.0,
    sided: str = "one",
    state: Any = None,
) -> CrossSpectrum:
    """Spectra of ``(y, a)`` in the stationary state that small noise keeps a circuit in.

    Args:
        circuit: The circuits.
        frequency: In cycles per unit of time, ``(F,)``; not negative if ``sided="one"``.
        noise: Noise of any kind, or several that are independent of each other. None is white
            noise, private to each neuron, of the strengths that follow. For circuits of another
            kind than :class:`Circuit`: the standard deviation of the white noise added to each
            part of the state by name, ``{"y": 1.0}``, or one number for all; None is 1.
        noise_y: For a :class:`Circuit`: standard deviation of the noise added to ``dy/dt``, per
            square root of time, at least 0: a number, ``(n,)`` or ``(..., n)``, whose leading
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
        by_part: Any = 1.0 if noise is None else noise
        return joint_spectrum(circuit, frequency, noise=by_part, sided=sided, state=state)
    circuit = check_circuit(circuit)
    check_choice("sided", sided, ("one", "two"))
    points = _frequency(circuit, frequency)
    given = _given(circuit, noise, noise_y, noise_a)
    if sided == "one":
        check_positive("frequency", points, allow_zero=True)
    _check_memory("cross_spectrum", circuit, points.numel())
    # Before the solve: a density of the user's own may not fit.
    colours = amplitudes(given, points) if isinstance(given, list) else None
    point = working_point(circuit, state)
    factor, strength = _at(circuit, given, point)
    response = respond(point.jacobian, points.double(), factor)
    if colours is not None:
        response = response * colours.unsqueeze(-2)
    # Each component in a unit of its own, for the squares of small ones leave the dtype's range.
    size = response.detach().abs().amax(-1, keepdim=True)
    size = torch.where(size > torch.finfo(size.dtype).tiny, size, 1.0)
    response = response / size
    unit = size * strength.unsqueeze(-3)
    density = unit * (unit.mT * (response.conj() @ response.mT))
    if sided == "one":
        density = density * (1.0 + (points > 0).to(density.dtype))[:, None, None]
    density = _nan_unless(point.stable[..., None, None, None], density)
    dtype = circuit.input_drive.dtype.to_complex()
    return CrossSpectrum(points, density.to(dtype), sided, response.to(dtype))


def stationary_covariance(
    circuit: Circuit | DynamicalCircuit,
    *,
    noise: Noise | Sequence[Noise] | NoiseByPart | None = None,
    noise_y: Values | float = 1.0,
    noise_a: Values | float = 0.0,
    state: Any = None,
) -> Tensor:
    """Covariance ``C`` of ``(y, a)`` under small noise; white: ``J C + C J^T + L L^T = 0``.

    Arguments and errors are those of :func:`cross_spectrum`, of whose two-sided density it is the
    integral over all frequencies; ``O(n^3)`` operations a circuit. For Ornstein-Uhlenbeck noise the
    equation is that of the circuit and its sources together. For noise of another density the
    integral is computed, by sums of so many terms that twice as many change it by less than 1e-8 of
    the variances.

    Returns:
        ``C``, ``(..., 2n, 2n)`` in the order ``(y, a)``, symmetric, differentiable and NaN as
        :func:`cross_spectrum`.

    Raises:
        ValueError: As in :func:`cross_spectrum`; or a density is a tensor, which has no integral.
        RuntimeError: The integral over a density does not converge.
    """
    if not isinstance(circuit, Circuit) and isinstance(circuit, DynamicalCircuit):
        by_part: Any = 1.0 if noise is None else noise
        return joint_covariance(circuit, noise=by_part, state=state)
    circuit = check_circuit(circuit)
    given = _given(circuit, noise, noise_y, noise_a)
    refuse_samples(given)
    _check_memory("stationary_covariance", circuit, None)
    point = working_point(circuit, state)
    if isinstance(given, list):
        covariance = coloured_covariance(circuit, given, point)
    else:
        factor, strength = given
        covariance = solve_lyapunov(point.jacobian, factor, point.eigenvalues)
        covariance = strength * (strength * covariance)
    covariance = _nan_unless(point.stable[..., None, None], covariance)
    return covariance.to(circuit.input_drive.dtype)


def _given(
    circuit: Circuit, noise: Any, noise_y: Any, noise_a: Any
) -> tuple[Tensor, Tensor] | list[Source]:
    """The noise, by either way to say it, checked."""
    if noise is None:
        return _white(circuit, noise_y, noise_a)
    for name, value, default in (("noise_y", noise_y, 1.0), ("noise_a", noise_a, 0.0)):
        if not (isinstance(value, float) and value == default):
            raise ValueError(f"{name}: got one beside noise, expected either of them")
    return sources_of(circuit, as_noises(noise))


def _at(
    circuit: Circuit, given: tuple[Tensor, Tensor] | list[Source], point: WorkingPoint
) -> tuple[Tensor, Tensor]:
    """``L`` in units of its largest entry, ``(..., 2n, k)``, and that entry, ``(..., 1, 1)``."""
    if isinstance(given, list):
        return joint_factor(circuit, given, point.y, point.a)
    return given


def _white(
    circuit: Circuit, noise_y: Values | float, noise_a: Values | float
) -> tuple[Tensor, Tensor]:
    """Private white noise: ``L`` in units of its largest entry, ``(..., 2n, k)``, and that entry.

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
            check_leading(name, tensor, batch)
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
