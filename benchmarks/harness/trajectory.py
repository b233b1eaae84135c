"""One circuit's trajectory by scipy's stiff ODE solvers, written without the library's equations.

Only numpy and scipy: worker processes start fast, and the check shares no code with the solver.
"""

from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

__all__ = ["Fate", "Parameters", "follow", "random_start", "rest"]

Array = NDArray[np.float64]

BLOW_UP = 1e6
MOVING = 1e-4
SETTLED = 1e-7


class Fate(StrEnum):
    """What a trajectory does in the end."""

    SETTLES = "settles"
    DIVERGES = "diverges"
    KEEPS_MOVING = "keeps moving"
    UNDECIDED = "undecided"


class Parameters(NamedTuple):
    """One circuit with ``tau = 1`` and exponent 2: ``d, c`` of shape ``(n,)``, ``Wr, W (n, n)``."""

    d: Array
    c: Array
    wr: Array
    w: Array


def rest(circuit: Parameters) -> Array:
    """The state ``(y, a) = (0, c)`` of shape ``(2n,)``."""
    return np.concatenate([np.zeros_like(circuit.d), circuit.c])


def random_start(circuit: Parameters, generator: np.random.Generator) -> Array:
    """A state with ``y`` Gaussian and ``a`` log-normal, of a size between 0.03 and 30."""
    n = circuit.d.size
    size_y, size_a = 10.0 ** generator.uniform(-1.5, 1.5, 2)
    y = size_y * generator.standard_normal(n)
    return np.concatenate([y, size_a * np.exp(generator.standard_normal(n))])


def flow(_: float, x: Array, circuit: Parameters) -> Array:
    """Eq. 15 of the paper: ``d/dt (y, a)``."""
    y, a = np.split(x, 2)
    positive = np.maximum(a, 0.0)
    gain = 1.0 - np.sqrt(positive)
    return np.concatenate(
        [
            circuit.d - y + gain * (circuit.wr @ y),
            circuit.c - a + circuit.w @ (y * y * positive),
        ]
    )


def flow_jacobian(_: float, x: Array, circuit: Parameters) -> Array:
    """``d flow / d (y, a)``, ``(2n, 2n)``."""
    y, a = np.split(x, 2)
    root = np.sqrt(np.maximum(a, 1e-300))
    identity = np.eye(y.size)
    return np.block(
        [
            [
                (1.0 - root)[:, None] * circuit.wr - identity,
                -np.diag(circuit.wr @ y / (2.0 * root)),
            ],
            [circuit.w * (2.0 * y * a), circuit.w * (y * y) - identity],
        ]
    )


def _blown_up(_: float, x: Array, __: Parameters) -> float:
    return float(np.abs(x).max()) - BLOW_UP


_blown_up.terminal = True  # type: ignore[attr-defined]


def follow(circuit: Parameters, start: Array, duration: float) -> tuple[Fate, float]:
    """Integrate for ``duration`` time constants; the fate and the largest last relative speed.

    The speed ``|dx/dt| / |x|`` is looked at over the last tenth of the time: the trajectory
    settles if it stays below ``SETTLED`` there and the Jacobian at its end is stable, and keeps
    moving if its largest value exceeds ``MOVING``. Otherwise it is followed ten times as long.
    """
    for times in (1.0, 10.0, 100.0):
        fate, speed = _follow_once(circuit, start, times * duration)
        if fate is not Fate.UNDECIDED:
            break
    return fate, speed


def _follow_once(circuit: Parameters, start: Array, duration: float) -> tuple[Fate, float]:
    for method in ("LSODA", "Radau"):
        solution = solve_ivp(
            flow,
            (0.0, duration),
            start,
            method=method,
            t_eval=np.linspace(0.9 * duration, duration, 200),
            events=_blown_up,
            args=(circuit,),
            jac=flow_jacobian,
            rtol=1e-8,
            atol=1e-10,
        )
        if solution.status == 1:
            return Fate.DIVERGES, np.inf
        if solution.status == 0:
            break
    else:
        return Fate.UNDECIDED, np.nan
    speeds = [
        float(np.linalg.norm(flow(0.0, x, circuit)) / np.linalg.norm(x)) for x in solution.y.T
    ]
    speed = max(speeds)
    if speed < SETTLED:
        end = flow_jacobian(0.0, solution.y[:, -1], circuit)
        stable = bool(np.linalg.eigvals(end).real.max() < 0)
        return (Fate.SETTLES if stable else Fate.UNDECIDED), speed
    return (Fate.KEEPS_MOVING if speed > MOVING else Fate.UNDECIDED), speed
