"""Random circuits for Conjecture 5.3, and the search for a stable steady state of each."""

from enum import IntEnum

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from deq_organics import Circuit, Status, equations
from deq_organics.problem import Problem
from deq_organics.steady_state.methods.newton import solve_newton
from deq_organics.steady_state.methods.normalized import solve_normalized

TOL = 1e-9
FAST_ITERATIONS = 40
NEWTON_STEPS = 8
# Times, in units of tau, at which Newton's method starts from where a trajectory is.
LOOKS_FROM_REST, LOOKS_FROM_ELSEWHERE = (5.0, 15.0, 40.0, 100.0), (10.0, 40.0)
RANDOM_STARTS, NEWTON_STARTS = 4, 30
LEAST_SQUARES_STARTS, LEAST_SQUARES_SPACING = 40, 2.0
STEP = 0.1
FAR = 1e6
# Real parts that rounding could have made: of circuits with these nothing is said.
MARGINAL = 1e-8


class Verdict(IntEnum):
    """What the search found out about a circuit."""

    STABLE = 0
    UNSTABLE = 1
    NO_STEADY_STATE = 2
    UNDECIDED = 3

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


def classify(circuit: Circuit, seed: int = 0) -> Tensor:
    """Looks for a stable steady state of each of `B` circuits with an exponent of 2.

    A stable one is a fact: a residual below `TOL` and eigenvalues of the Jacobian with negative
    real parts, all of which are computed. "Unstable" and "no steady state" say what was found
    instead: only unstable fixed points, or none while the trajectory from rest diverges. Searched
    are the ends of the fast iteration, of trajectories from rest and from random states, each
    with Newton's method from several points of it (their time constants are 1, which moves no fixed
    point), and what the library's default solver finds; where none of these is a fixed point,
    Newton's method starts from many random states, and least squares have the last word.

    Args:
        circuit: the circuits, with one batch dimension.
        seed: decides the random states.

    Returns:
        A `Verdict` for each circuit, `(B,)`.
    """
    return _Search(circuit, seed).verdict


class _Search:
    """What is known of each circuit of a batch, and which of them have no stable state yet."""

    def __init__(self, circuit: Circuit, seed: int) -> None:
        self._problem = circuit.flatten()
        self._generator = torch.Generator().manual_seed(seed)
        self.verdict = torch.full(
            (self._problem.batch_size,),
            int(Verdict.NO_STEADY_STATE),
            device=self._problem.input_drive.device,
        )
        self._left = torch.arange(len(self.verdict), device=self.verdict.device)
        self._run()

    def _run(self) -> None:
        fast = solve_normalized(self._problem, TOL, FAST_ITERATIONS)
        self._judge(self._left, fast.y, fast.a, fast.status == Status.CONVERGED)
        problem = self._problem.select(self._left)
        rest = problem.inhibitory_drive.expand_as(problem.input_drive)
        self._follow(self._left, torch.zeros_like(rest), rest, LOOKS_FROM_REST)
        rows = self._left.repeat(RANDOM_STARTS)
        self._follow(rows, *self._random_state(rows), LOOKS_FROM_ELSEWHERE)
        if self._left.numel():
            self._finish()

    def _follow(self, rows: Tensor, y: Tensor, a: Tensor, looks: tuple[float, ...]) -> None:
        """Follows one trajectory for each of some rows, and at times tries Newton's method."""
        time = 0.0
        for look in looks:
            if rows.numel() == 0:
                return
            y, a = _integrate(self._problem.select(rows), y, a, look - time)
            time = look
            self._try_newton(rows, y, a, NEWTON_STEPS)
            kept = torch.isin(rows, self._left)
            rows, y, a = rows[kept], y[kept], a[kept]

    def _finish(self) -> None:
        """The library's default solver, and more of Newton's method where nothing was found."""
        rows = self._left
        state = Circuit(*self._problem.select(rows)).steady_state(tol=TOL, on_failure="ignore")
        self._judge(rows, state.y, state.a, state.residual <= TOL)
        for _ in range(NEWTON_STARTS):
            unexplained = rows[self.verdict[rows] == Verdict.NO_STEADY_STATE]
            if unexplained.numel() == 0:
                return
            self._try_newton(unexplained, *self._random_balance(unexplained), 4 * NEWTON_STEPS)
        bounded = rows[state.status != Status.DIVERGED]
        for row in bounded[self.verdict[bounded] == Verdict.NO_STEADY_STATE].unsqueeze(-1):
            self._try_least_squares(row)
        self.verdict[bounded[self.verdict[bounded] == Verdict.NO_STEADY_STATE]] = Verdict.UNDECIDED

    def _try_least_squares(self, row: Tensor) -> None:
        """Levenberg-Marquardt for one circuit, from points of its trajectory and random states."""
        problem = self._problem.select(row)
        n = self._problem.input_drive.shape[-1]
        d, c = (
            part.reshape(n).cpu().numpy()
            for part in (problem.input_drive, problem.inhibitory_drive)
        )
        w, wr = (
            part.reshape(n, n).cpu().numpy()
            for part in (problem.normalization_weight, problem.recurrent_matrix())
        )

        # As in the fast iteration: at a fixed point a is a function of v = sqrt(a) y.
        def state(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            active = np.maximum(v, 0.0) if problem.rectified else v
            a = c + w @ np.square(active)
            return v / np.sqrt(a), a

        def residual(v: np.ndarray) -> np.ndarray:
            y, a = state(v)
            active = np.maximum(y, 0.0) if problem.rectified else y
            return d - y + (1.0 - np.sqrt(a)) * (wr @ active)

        y, a = torch.zeros_like(problem.input_drive), problem.inhibitory_drive.clone()
        for _ in range(LEAST_SQUARES_STARTS):
            y, a = _integrate(problem, y, a, LEAST_SQUARES_SPACING)
            for start_y, start_a in ((y, a), self._random_state(row)):
                start = (start_y * start_a.abs().sqrt()).squeeze(0).cpu().numpy()
                end = scipy.optimize.root(residual, start, method="lm")
                found_y, found_a = (
                    torch.as_tensor(part).to(y).unsqueeze(0) for part in state(end.x)
                )
                self._try_newton(row, found_y, found_a, NEWTON_STEPS)
                if self.verdict[row] != Verdict.NO_STEADY_STATE:
                    return

    def _random_state(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """States of the size that the inputs suggest."""
        problem = self._problem.select(rows)
        noise = torch.randn(
            2, *problem.input_drive.shape, generator=self._generator, dtype=torch.float64
        ).to(problem.input_drive.device)
        y = 2.0 * problem.input_drive.norm(dim=-1, keepdim=True) * noise[0]
        return y, problem.inhibitory_drive + noise[1].square()

    def _random_balance(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """States in which the inhibitory neurons are at rest, of sizes over three decades."""
        problem = self._problem.select(rows)
        shape = problem.input_drive.shape
        noise = torch.randn(*shape, generator=self._generator, dtype=torch.float64)
        size = 10.0 ** (3.0 * torch.rand(shape[0], 1, generator=self._generator) - 1.0)
        drive = (size * noise).to(problem.input_drive) * problem.input_drive.norm(
            dim=-1, keepdim=True
        )
        a = problem.inhibitory_drive + equations.matvec(
            problem.normalization_weight, drive.square()
        )
        return drive / a.sqrt(), a

    def _try_newton(self, rows: Tensor, y: Tensor, a: Tensor, steps: int) -> None:
        found = solve_newton(self._problem.select(rows), y, a, TOL, steps)
        self._judge(rows, found.y, found.a, found.status == Status.CONVERGED)

    def _judge(self, rows: Tensor, y: Tensor, a: Tensor, solved: Tensor) -> None:
        """Takes note of the fixed points of some rows; circuits with a stable one are done."""
        # Where a is huge, rounding alone can make the equations hold.
        solved = solved & (y.abs() < FAR).all(-1) & (a.abs() < FAR).all(-1)
        rows, y, a = rows[solved], y[solved], a[solved]
        if rows.numel() == 0:
            return
        jacobian = self._problem.select(rows).jacobian(y, a)
        leading = torch.linalg.eigvals(jacobian).real.amax(-1)
        marginal = leading.abs() < MARGINAL
        unknown = self.verdict[rows] == Verdict.NO_STEADY_STATE
        # A row may be there more than once: what counts more is written later.
        self.verdict[rows[unknown]] = Verdict.UNSTABLE
        self.verdict[rows[marginal]] = Verdict.UNDECIDED
        self.verdict[rows[(leading < 0) & ~marginal]] = Verdict.STABLE
        self._left = self._left[self.verdict[self._left] != Verdict.STABLE]


def _integrate(problem: Problem, y: Tensor, a: Tensor, duration: float) -> tuple[Tensor, Tensor]:
    """The classical Runge-Kutta method with time constants of 1; what runs away stays there."""
    for _ in range(round(duration / STEP)):
        k1 = problem.residual(y, a)
        k2 = problem.residual(y + 0.5 * STEP * k1[0], a + 0.5 * STEP * k1[1])
        k3 = problem.residual(y + 0.5 * STEP * k2[0], a + 0.5 * STEP * k2[1])
        k4 = problem.residual(y + STEP * k3[0], a + STEP * k3[1])
        y_new = y + STEP / 6.0 * (k1[0] + 2.0 * (k2[0] + k3[0]) + k4[0])
        a_new = a + STEP / 6.0 * (k1[1] + 2.0 * (k2[1] + k3[1]) + k4[1])
        near = ((y_new.abs() < FAR) & (a_new.abs() < FAR)).all(-1, keepdim=True)
        y, a = torch.where(near, y_new, y), torch.where(near, a_new, a)
    return y, a
