"""Simulate trials of circuits with noise."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import equations
from ..caller_warnings import warn_caller
from ..checks import (
    check_bool,
    check_choice,
    check_finite,
    check_number,
    check_positive_int,
    physical,
    refuse_transforms,
)
from ..circuit import Circuit
from ..errors import SimulationError, SimulationWarning
from ..memory import check_memory
from ..response.arguments import as_tensor_or_array, check_circuit
from ..response.drives import INTERPOLATIONS, Drive, Steady, as_drive
from ..response.noise import Noise, as_noises
from ..response.noise_sources import Source, sources_of
from ..response.setting import flat_problem, flat_start
from ..steady_state.options import ON_FAILURE
from ..steady_state.record import SteadyState
from .kicks import Kicks
from .random_numbers import Streams
from .record import Trials
from .stepping import Plan, follow

__all__ = ["simulate_noise"]

_Given = Callable[[Tensor], Tensor] | Tensor | tuple[Tensor, Tensor]
# Steps in units of the time of the fastest mode: taken, and allowed.
_STEP, _LONGEST_STEP = 0.05, 0.5
# Numbers of the states that are stepped together: more leave the caches.
_BLOCK = 2**17
_NAMED = 5


def simulate_noise(
    circuit: Circuit,
    t: Tensor,
    *,
    noise: Noise | Sequence[Noise],
    dt: float | None = None,
    trials: int = 100,
    seed: int | Tensor = 0,
    start: str | tuple[Tensor, Tensor] | SteadyState | None = None,
    burn_in: float = 0.0,
    input_drive: _Given | None = None,
    inhibitory_drive: _Given | None = None,
    interpolation: str = "linear",
    block: int | None = None,
    on_failure: str = "warn",
    progress: bool = False,
) -> Trials:
    """Follow trials of circuits with noise, by the stochastic Heun scheme; no derivatives.

    A step integrates the noise exactly, also where it is longer than the noise's correlation time.
    The drift's error is of second order in the step ``h``: around a steady state the variance of a
    mode with the rate ``r`` comes out lower by a part of ``(h r)^2 / 4`` (0.06 % of the fastest
    one's for the default step), that of a mode with the frequency ``w`` (radians) and the damping
    ratio ``q`` higher by about ``(h w)^3 / (8 q)``. The power at a frequency ``f`` comes out lower
    by a part of about ``(2 pi f h)^2 / 12``: for spectra up to half of the sampling rate take ten
    steps from one time to the next.

    Trial ``k`` has random numbers of its own, which the seed, ``k`` and the steps determine: not
    how many trials, blocks or circuits are computed beside it, nor the device. All circuits of a
    batch have the same ones in trial ``k``, so that their differences are free of much of the
    noise; seeds of their own make them independent.

    Args:
        circuit: The circuits.
        t: Increasing times ``(T,)``, at least two, which are kept.
        noise: White or Ornstein-Uhlenbeck noise, or several that are independent of each other.
        dt: The longest step; the times are met by equal steps between each two. None takes a
            twentieth of the fastest mode's time (one over its rate) at the start.
        trials: How many.
        seed: At least 0: an int, or a tensor of ints ``(...)``, one for each circuit.
        start: At what state all trials start: a :class:`SteadyState`, ``(y, a)`` of shapes that
            broadcast to ``(..., n)``, or ``"rest"``. None solves for the steady state.
            Ornstein-Uhlenbeck noise starts in its own stationary state.
        burn_in: Time that is simulated before the first of ``t`` and not kept.
        input_drive: ``d = b z`` in time, as in :func:`deq_organics.simulate`; None is the
            circuit's own. It is looked at at the ends of steps, so that a jump between two of them
            is moved by up to a step.
        inhibitory_drive: ``c = (b0 sigma)^m`` in time, likewise.
        interpolation: What sampled input is between its times, ``"linear"`` or ``"previous"``.
        block: Trials that are stepped together; None chooses. It limits the memory beyond the
            result's.
        on_failure: For trials that diverge, that is grow a million times larger than their start
            and input, and are NaN from then on: ``"warn"`` says which, and when the first did;
            ``"error"`` raises :class:`SimulationError`; ``"ignore"`` leaves it to the caller to
            look at ``finished``.
        progress: Whether to show a progress bar, by tqdm.

    Returns:
        The :class:`Trials`.

    Raises:
        TypeError: An argument is not of its type.
        ValueError: A shape, dtype, device or value does not fit; the message names the argument.
            Also: the noise has a density that cannot be simulated, a circuit without a steady
            state is given no start, or ``dt`` is too long for the circuit.
        MemoryError: The result does not fit into memory.
        RuntimeError: Derivatives or transforms are asked for.
        ImportError: ``progress`` is asked for and tqdm is not installed.
    """
    check_circuit(circuit)
    noises = as_noises(noise)
    sources = sources_of(circuit, noises)
    _refuse_densities(sources)
    trials = check_positive_int("trials", trials)
    check_choice("on_failure", on_failure, ON_FAILURE)
    check_choice("interpolation", interpolation, INTERPOLATIONS)
    check_bool("progress", progress)
    times = _times(circuit, t)
    burn_in = check_number("burn_in", burn_in, low=0.0)
    seeds = _seeds(seed, circuit.batch_shape)
    _refuse_derivatives(circuit, sources)
    shape = (trials, times.numel(), *circuit.batch_shape, circuit.n)
    dtype, device = circuit.input_drive.dtype, circuit.input_drive.device
    check_memory("simulate_noise: the trials", shape, dtype, device, copies=2.5)
    with torch.no_grad(), equations.full_precision(circuit.input_drive):
        drives = (input_drive, inhibitory_drive)
        plan = _plan(circuit, times, burn_in, dt, start, drives, interpolation)
        y = torch.empty((trials, times.numel(), *plan.start[0].shape), dtype=dtype, device=device)
        a, reached = torch.empty_like(y), []
        size = max(1, _BLOCK // max(1, 2 * plan.start[0].numel()))
        size = size if block is None else check_positive_int("block", block)
        with _Bar(progress, trials * times.numel()) as bar:
            for first in range(0, trials, size):
                rows = range(first, min(first + size, trials))
                kicks = Kicks(sources, circuit.batch_shape, circuit.n, plan.start[0])
                streams = Streams(seeds, rows, kicks.width, plan.start[0])

                def record(index: int, now_y: Tensor, now_a: Tensor, rows: range = rows) -> None:
                    y[rows.start : rows.stop, index] = now_y.transpose(0, 1)
                    a[rows.start : rows.stop, index] = now_a.transpose(0, 1)
                    bar.update(len(rows))

                reached.append(follow(plan, kicks, streams, len(rows), record).T)
    found = Trials(
        times.to(dtype) if t.dtype != torch.float64 else times,
        y.reshape(shape),
        a.reshape(shape),
        circuit,
        noises,
        plan.longest,
        torch.cat(reached).reshape(trials, *circuit.batch_shape),
        driven=any(drive is not None for drive in drives),
    )
    _report(found, on_failure)
    return found


class _Bar:
    """tqdm's progress bar, or none."""

    def __init__(self, shown: bool, total: int) -> None:
        self._bar: Any = None
        if shown:
            try:
                from tqdm.auto import tqdm
            except ImportError as error:
                raise ImportError(
                    "progress=True shows tqdm's bar, which is not installed: pip install tqdm"
                ) from error
            self._bar = tqdm(total=total, unit=" states")

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, amount: int) -> None:
        if self._bar is not None:
            self._bar.update(amount)


def _refuse_densities(sources: Sequence[Source]) -> None:
    for source in sources:
        if source.density is not None:
            raise ValueError(
                f"{source.name}.density: got one, expected white or Ornstein-Uhlenbeck noise: only "
                "the linear response takes other densities"
            )


def _refuse_derivatives(circuit: Circuit, sources: Sequence[Source]) -> None:
    tensors = [*circuit.parameters.tensors(), *(source.factor for source in sources)]
    reason = refuse_transforms(tensors)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        reason = "derivatives"
    if reason:
        raise RuntimeError(
            f"simulate_noise does not support {reason}, and they are asked for; use "
            "torch.no_grad(), or the derivatives of cross_spectrum and stationary_covariance"
        )


def _times(circuit: Circuit, t: Any) -> Tensor:
    times = physical(as_tensor_or_array("t", t, circuit.input_drive.device))
    check_finite("t", times)
    if times.ndim != 1 or times.numel() < 2 or not (times.diff() > 0).all():
        raise ValueError(
            f"t: got shape {tuple(times.shape)}, expected (T,) increasing times, T >= 2"
        )
    return times.to(circuit.input_drive.device, torch.float64)


def _seeds(seed: Any, batch: torch.Size) -> list[int]:
    """One seed for all circuits, or one for each of the flat batch."""
    if not isinstance(seed, Tensor):
        return [_seed(seed)]
    if seed.is_floating_point() or seed.is_complex() or seed.dtype == torch.bool:
        raise TypeError(f"seed: got dtype {seed.dtype}, expected integers")
    try:
        spread = seed.expand(batch)
    except RuntimeError:
        raise ValueError(
            f"seed: got shape {tuple(seed.shape)}, expected to broadcast to {tuple(batch)}, one "
            "for each circuit"
        ) from None
    return [_seed(value) for value in spread.reshape(-1).tolist()]


def _seed(value: Any) -> int:
    number = check_number("seed", value, low=0.0)
    if number != value or not float(number).is_integer():
        raise TypeError(f"seed: got {value!r}, expected an int")
    return int(value)


def _plan(
    circuit: Circuit,
    times: Tensor,
    burn_in: float,
    dt: float | None,
    start: Any,
    given: tuple[Any, Any],
    interpolation: str,
) -> Plan:
    batch = circuit.batch_shape
    problem = flat_problem(circuit, batch)
    problem = problem.map(lambda tensor, _: tensor.detach())
    drives: list[Drive] = []
    span = times if burn_in == 0 else torch.cat([times[:1] - burn_in, times])
    for name, value in zip(("input_drive", "inhibitory_drive"), given, strict=True):
        if value is None:
            drives.append(Steady(getattr(problem, name)))
            continue
        if isinstance(value, Tensor) and burn_in > 0:
            raise ValueError(
                f"{name}: got values at the times of t with burn_in={burn_in:g}, expected a "
                "function of the time, or (times, values) from the start of burn_in on"
            )
        drive = as_drive(
            name,
            value,
            circuit,
            span,
            interpolation=interpolation,
            positive=name == "inhibitory_drive",
            width=circuit.n,
        )
        if not _fits(drive.lead, batch):
            raise ValueError(
                f"{name}: got leading dimensions {tuple(drive.lead)}, expected those of the "
                f"circuits, {tuple(batch)}"
            )
        drives.append(drive.flat(batch))
    begin = _start(circuit, start, drives[1], span)
    longest = _longest(circuit, begin, dt)
    looks = span[torch.linspace(0, len(span) - 1, min(64, len(span))).round().long()]
    sizes = [*(part.abs() for part in begin), *(drive.largest(looks) for drive in drives)]
    count = problem.batch_size
    size = torch.stack([part.amax(-1).expand(count) for part in sizes]).amax(0)
    steady = given == (None, None)
    return Plan(
        problem, drives[0], drives[1], steady, begin, size, span.tolist(), len(times), longest
    )


def _fits(lead: torch.Size, batch: torch.Size) -> bool:
    """Whether leading dimensions broadcast with the circuits' and do not enlarge them."""
    try:
        return torch.broadcast_shapes(lead, batch) == batch
    except RuntimeError:
        return False


def _start(circuit: Circuit, start: Any, level: Drive, span: Tensor) -> tuple[Tensor, Tensor]:
    """``(y, a)``, ``(B, n)`` each."""
    batch, n = circuit.batch_shape, circuit.n
    if start is None:
        tol = min(1e-6, 512.0 * torch.finfo(circuit.input_drive.dtype).eps)
        start = circuit.steady_state(tol=tol, on_failure="ignore")
        if missing := int((~start.converged).sum()):
            raise ValueError(
                f"start: got None with {missing} of {start.converged.numel()} circuits without a "
                "steady state, expected one: 'rest' or (y, a)"
            )
    if isinstance(start, str):
        check_choice("start", start, ("rest",))
        zero = circuit.input_drive.new_zeros(batch.numel(), n)
        first = span[:1].expand(batch.numel())
        return zero, level(first).expand(batch.numel(), n)
    if isinstance(start, SteadyState):
        start = (start.y, start.a)
    if not (isinstance(start, tuple | list) and len(start) == 2):
        raise TypeError(
            f"start: got {type(start).__name__}, expected 'rest', (y, a) or a SteadyState"
        )
    y, a = (
        flat_start(circuit, f"start[{index}]", value, batch).detach()
        for index, value in enumerate(start)
    )
    return y, a


def _longest(circuit: Circuit, begin: tuple[Tensor, Tensor], dt: float | None) -> float:
    """The longest step, from the rates of the circuits at their start."""
    shape = (*circuit.batch_shape, circuit.n)
    jacobian = circuit.to(torch.float64).jacobian(*(part.reshape(shape).double() for part in begin))
    fastest = float(torch.linalg.eigvals(jacobian).abs().amax()) if jacobian.numel() else 1.0
    if dt is None:
        return _STEP / fastest
    longest = check_number("dt", dt, low=0.0, open_low=True)
    if longest * fastest > _LONGEST_STEP:
        raise ValueError(
            f"dt: got {longest:g}, expected at most {_LONGEST_STEP / fastest:.3g}: the fastest "
            f"mode at the start has a rate of {fastest:.4g}"
        )
    return longest


def _report(found: Trials, on_failure: str) -> None:
    """Warn or raise for the trials that diverged."""
    lost = ~found.finished
    if on_failure == "ignore" or not lost.any():
        return
    places = lost.nonzero().tolist()
    named = ", ".join(str(tuple(place)) for place in places[:_NAMED])
    more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
    message = (
        f"{len(places)} of {lost.numel()} trials diverge, the first after t = "
        f"{float(found.reached[lost].min()):.6g}: (trial, circuit) {named}{more}"
    )
    if on_failure == "error":
        raise SimulationError(message)
    warn_caller(f"{message}. They are NaN from then on.", SimulationWarning)
