"""Rodas5P: a linearly implicit method for stiff circuits (Steinebach, BIT 63:27, 2023).

Fifth order with an estimate of fourth order and dense output of fourth order, L-stable and
stiffly accurate: 8 linear systems with one matrix a step, no iteration, and it differentiates.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .explicit import combine
from .method import Step, VectorField, is_autonomous

__all__ = ["RODAS5P", "RosenbrockMethod"]


@dataclass(frozen=True)
class RosenbrockMethod:
    """A stiffly accurate Rosenbrock method, in increments ``U`` (Hairer, Wanner, Solving ODEs II).

    ``(1 / gamma - h J) U_i = h f(x + sum_j stages_ij U_j) + sum_j couplings_ij U_j``; the state at
    the end is the last stage's argument plus the last increment, which also estimates the error.

    The time is one more component of ``x``, whose derivative is 1. Its increments are ``h u_i``
    with ``u_i = gamma (1 + sum_j couplings_ij u_j)``: stages are at ``t + h sum_j stages_ij u_j``,
    and the right side above gets ``h^2 u_i df/dt``.
    """

    gamma: float
    stages: tuple[tuple[float, ...], ...]
    """Weights of the increments before it in each stage's argument, from the second stage on."""
    couplings: tuple[tuple[float, ...], ...]
    dense: tuple[tuple[float, ...], ...]
    """Of ``part (1 - part) part^i``, in terms of the increments."""
    error_order: int

    interpolates = True
    needs_jacobian = True

    def step(
        self, field: VectorField, time: Tensor, state: Tensor, slope: Tensor, h: Tensor
    ) -> Step:
        length = h.to(state.dtype).unsqueeze(-1)
        clock = self._clock()
        drift = None if is_autonomous(field) else _drift(field, time, state, slope, h)
        identity = torch.eye(state.shape[-1], dtype=state.dtype, device=state.device)
        matrix = identity / self.gamma - length.unsqueeze(-1) * field.jacobian(time, state)
        lu, pivots, _ = torch.linalg.lu_factor_ex(matrix)

        def solve(right: Tensor) -> Tensor:
            return torch.linalg.lu_solve(lu, pivots, right.unsqueeze(-1)).squeeze(-1)

        def forced(right: Tensor, passed: float) -> Tensor:
            return right if drift is None else right + passed * length * drift

        increments = [solve(forced(length * slope, clock[0]))]
        end = state
        stages = zip(self.stages, self.couplings, clock[1:], strict=True)
        for weights, coupling, passed in stages:
            end = state + combine(weights, increments)
            part = sum(weight * since for weight, since in zip(weights, clock, strict=False))
            right = length * field(time + part * h, end) + combine(coupling, increments)
            increments.append(solve(forced(right, passed)))
        error = increments[-1]
        end = end + error
        return Step(state, end, field(time + h, end), error, increments)

    def _clock(self) -> list[float]:
        """The increments of the time, in units of ``h``."""
        found = [self.gamma]
        for coupling in self.couplings:
            total = sum(weight * part for weight, part in zip(coupling, found, strict=True))
            found.append(self.gamma * (1.0 + total))
        return found

    def interpolate(self, step: Step, part: Tensor) -> Tensor:
        part = part.unsqueeze(-1)
        bend = torch.zeros_like(step.start)
        for weights in reversed(self.dense):
            bend = part * bend + combine(weights, step.increments)
        return step.start + part * (step.end - step.start + (1.0 - part) * bend)


# Of values at these parts of a step: `h` times the derivative at its begin, of fourth order.
_PARTS = (1 / 8, 1 / 4, 3 / 8, 1 / 2)
_FIRST_WEIGHT, _WEIGHTS = -50 / 3, (32.0, -24.0, 32 / 3, -2.0)


def _drift(field: VectorField, time: Tensor, state: Tensor, slope: Tensor, h: Tensor) -> Tensor:
    """``h df/dt`` ``(B, k)`` at the begin of a step, by differences within the step.

    Their error has the order of the method's own, they need no derivative of what may be a user's
    function, they differentiate, and they do not look across a jump.
    """
    change = _FIRST_WEIGHT * slope
    for part, weight in zip(_PARTS, _WEIGHTS, strict=True):
        change = change + weight * field(time + part * h, state)
    return change


_LAST = (
    -7.502846399306121,
    2.561846144803919,
    -11.627539656261098,
    -0.18268767659942256,
    0.030198172008377946,
)

RODAS5P = RosenbrockMethod(
    gamma=0.21193756319429014,
    stages=(
        (3.0,),
        (2.849394379747939, 0.45842242204463923),
        (-6.954028509809101, 2.489845061869568, -10.358996098473584),
        (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
        _LAST,
        (*_LAST, 1.0),
        (*_LAST, 1.0, 1.0),
    ),
    couplings=(
        (-14.155112264123755,),
        (-17.97296035885952, -2.859693295451294),
        (147.12150275711716, -1.41221402718213, 71.68940251302358),
        (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
        (
            24.854864614690072,
            -3.0009227002832186,
            47.4931110020768,
            5.5814197821558125,
            -0.6610691825249471,
        ),
        (
            30.91273214028599,
            -3.1208243349937974,
            77.79954646070892,
            34.28646028294783,
            -19.097331116725623,
            -28.087943162872662,
        ),
        (
            37.80277123390563,
            -3.2571969029072276,
            112.26918849496327,
            66.9347231244047,
            -40.06618937091002,
            -54.66780262877968,
            -9.48861652309627,
        ),
    ),
    dense=(
        (
            25.948786856663858,
            -2.5579724845846235,
            10.433815404888879,
            -2.3679251022685204,
            0.524948541321073,
            1.1241088310450404,
            0.4272876194431874,
            -0.17202221070155493,
        ),
        (
            -9.91568850695171,
            -0.9689944594115154,
            3.0438037242978453,
            -24.495224566215796,
            20.176138334709044,
            15.98066361424651,
            -6.789040303419874,
            -6.710236069923372,
        ),
        (
            11.419903575922262,
            2.8879645146136994,
            72.92137995996029,
            80.12511834622643,
            -52.072871366152654,
            -59.78993625266729,
            -0.15582684282751913,
            4.883087185713722,
        ),
    ),
    error_order=5,
)
