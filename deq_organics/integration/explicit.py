"""Explicit Runge-Kutta methods: tableaus, and the one step that they share.

With a fixed step: Euler, the midpoint rule, Heun's methods of second and third order, Kutta's 3/8
rule. With an error estimate: Heun-Euler 2(1), Fehlberg 1(2), Bogacki-Shampine 3(2) (Appl. Math.
Lett. 2, 1989), Dormand-Prince 5(4) (J. Comput. Appl. Math. 6, 1980; dense output by Shampine, as
in Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, II.6) and Prince-Dormand
8(7) (J. Comput. Appl. Math. 7, 1981).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .method import Step, VectorField

__all__ = ["EXPLICIT_METHODS", "ExplicitMethod", "combine"]


@dataclass(frozen=True)
class ExplicitMethod:
    """An explicit Runge-Kutta method whose last stage is the derivative at the step's end."""

    stages: tuple[tuple[float, ...], ...]
    """Weights of the stages before it in each stage from the second on; the last is the end."""
    error: tuple[float, ...] | None = None
    """Weights of the stages in the error estimate."""
    error_order: int | None = None
    bubble: tuple[float, ...] = ()
    """What is added to the cubic Hermite polynomial, in units of ``part^2 (1 - part)^2``."""
    interpolates: bool = True

    needs_jacobian = False

    def step(
        self, field: VectorField, time: Tensor, state: Tensor, slope: Tensor, h: Tensor
    ) -> Step:
        length = h.to(state.dtype).unsqueeze(-1)
        increments = [length * slope]
        end = state
        for weights in self.stages:
            end = state + combine(weights, increments)
            slope = field(time + sum(weights) * h, end)
            increments.append(length * slope)
        error = None if self.error is None else combine(self.error, increments)
        return Step(state, end, slope, error, increments)

    def interpolate(self, step: Step, part: Tensor) -> Tensor:
        part = part.unsqueeze(-1)
        rest = 1.0 - part
        ends = part * part * (3.0 - 2.0 * part) * (step.end - step.start)
        slopes = part * rest * (rest * step.increments[0] - part * step.increments[-1])
        value = step.start + ends + slopes
        if self.bubble:
            value = value + (part * rest).square() * combine(self.bubble, step.increments)
        return value


def combine(weights: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    """The weighted sum of the first terms, one for each weight."""
    total: Tensor | None = None
    for weight, term in zip(weights, terms, strict=False):
        if weight:
            total = term * weight if total is None else torch.add(total, term, alpha=weight)
    return torch.zeros_like(terms[0]) if total is None else total


_PRINCE_DORMAND_8 = (
    14005451 / 335480064,
    0,
    0,
    0,
    0,
    -59238493 / 1068277825,
    181606767 / 758867731,
    561292985 / 797845732,
    -1041891430 / 1371343529,
    760417239 / 1151165299,
    118820643 / 751138087,
    -528747749 / 2220607170,
    1 / 4,
)
_PRINCE_DORMAND_7 = (
    13451932 / 455176623,
    0,
    0,
    0,
    0,
    -808719846 / 976000145,
    1757004468 / 5645159321,
    656045339 / 265891186,
    -3867574721 / 1518517206,
    465885868 / 322736535,
    53011238 / 667516719,
    2 / 45,
    0,
)

EXPLICIT_METHODS: dict[str, ExplicitMethod] = {
    "euler": ExplicitMethod(((1.0,),)),
    "midpoint": ExplicitMethod(((1 / 2,), (0.0, 1.0))),
    "heun2": ExplicitMethod(((1.0,), (1 / 2, 1 / 2))),
    "heun3": ExplicitMethod(((1 / 3,), (0.0, 2 / 3), (1 / 4, 0.0, 3 / 4))),
    "rk4": ExplicitMethod(
        ((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0), (1 / 8, 3 / 8, 3 / 8, 1 / 8))
    ),
    "adaptive_heun": ExplicitMethod(((1.0,), (1 / 2, 1 / 2)), (1 / 2, -1 / 2), 2),
    "fehlberg2": ExplicitMethod(
        ((1 / 2,), (1 / 256, 255 / 256), (1 / 512, 255 / 256, 1 / 512)), (-1 / 512, 0.0, 1 / 512), 2
    ),
    "bosh3": ExplicitMethod(
        ((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)), (-5 / 72, 1 / 12, 1 / 9, -1 / 8), 3
    ),
    "dopri5": ExplicitMethod(
        (
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
        5,
        (
            -12715105075 / 11282082432,
            0.0,
            87487479700 / 32700410799,
            -10690763975 / 1880347072,
            701980252875 / 199316789632,
            -1453857185 / 822651844,
            69997945 / 29380423,
        ),
    ),
    "dopri8": ExplicitMethod(
        (
            (1 / 18,),
            (1 / 48, 1 / 16),
            (1 / 32, 0, 3 / 32),
            (5 / 16, 0, -75 / 64, 75 / 64),
            (3 / 80, 0, 0, 3 / 16, 3 / 20),
            (
                29443841 / 614563906,
                0,
                0,
                77736538 / 692538347,
                -28693883 / 1125000000,
                23124283 / 1800000000,
            ),
            (
                16016141 / 946692911,
                0,
                0,
                61564180 / 158732637,
                22789713 / 633445777,
                545815736 / 2771057229,
                -180193667 / 1043307555,
            ),
            (
                39632708 / 573591083,
                0,
                0,
                -433636366 / 683701615,
                -421739975 / 2616292301,
                100302831 / 723423059,
                790204164 / 839813087,
                800635310 / 3783071287,
            ),
            (
                246121993 / 1340847787,
                0,
                0,
                -37695042795 / 15268766246,
                -309121744 / 1061227803,
                -12992083 / 490766935,
                6005943493 / 2108947869,
                393006217 / 1396673457,
                123872331 / 1001029789,
            ),
            (
                -1028468189 / 846180014,
                0,
                0,
                8478235783 / 508512852,
                1311729495 / 1432422823,
                -10304129995 / 1701304382,
                -48777925059 / 3047939560,
                15336726248 / 1032824649,
                -45442868181 / 3398467696,
                3065993473 / 597172653,
            ),
            (
                185892177 / 718116043,
                0,
                0,
                -3185094517 / 667107341,
                -477755414 / 1098053517,
                -703635378 / 230739211,
                5731566787 / 1027545527,
                5232866602 / 850066563,
                -4093664535 / 808688257,
                3962137247 / 1805957418,
                65686358 / 487910083,
            ),
            (
                403863854 / 491063109,
                0,
                0,
                -5068492393 / 434740067,
                -411421997 / 543043805,
                652783627 / 914296604,
                11173962825 / 925320556,
                -13158990841 / 6184727034,
                3936647629 / 1978049680,
                -160528059 / 685178525,
                248638103 / 1413531060,
                0,
            ),
            _PRINCE_DORMAND_8,
        ),
        tuple(high - low for high, low in zip(_PRINCE_DORMAND_8, _PRINCE_DORMAND_7, strict=True)),
        8,
        # No interpolant of its order: its steps end at every time that is asked for.
        interpolates=False,
    ),
}
