"""The steady state as a differentiable function of the circuit's parameters.

Implicit function theorem: with ``F = (tau_y dy/dt, tau_a da/dt)`` and its Jacobian ``J`` at the
steady state ``x``, ``dx = -J^-1 dF``. The reverse mode solves the adjoint equation once; memory
does not depend on how many iterations the forward solve took.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from . import cuda, equations
from ._validation import check_finite, is_transformed, physical, refuse_export
from ._warnings import warn_caller
from .adjoint import (
    adjoint_residual,
    solve_adjoint_dense,
    solve_adjoint_identity,
    solve_adjoint_iteratively,
    tangent_residual,
)
from .errors import AdjointWarning, SteadyStateError
from .solvers import Problem, Solution, Status, attainable, solve
from .solvers.auto import has_identity_recurrence

__all__ = ["SolveOptions", "steady_state_function"]


# The dense adjoint works on this many entries of Jacobians at a time, whatever the batch.
_ENTRIES_AT_A_TIME = 2**19


class SolveOptions(NamedTuple):
    """How to solve, as one hashable value."""

    solver: str
    tol: float
    max_iter: int
    check_stability: bool
    exponent: float
    rectified: bool
    raise_on_failure: bool
    shared: cuda.Shared | None
    """For the CUDA kernels; None to solve by torch."""
    check_values: Callable[[], None] | None
    """Raises where an argument's values are not valid; None after the solve."""


def _problem(options: SolveOptions, *tensors: Any) -> Problem:
    d, c, wr, w, tau_y, tau_a = tensors
    return Problem.flatten(d, c, wr, w, tau_y, tau_a, options.exponent, options.rectified)


def _solve(
    problem: Problem, options: SolveOptions, start: tuple[Tensor, Tensor] | None = None
) -> Solution:
    """By torch."""
    check_finite("input_drive", problem.input_drive)
    check_finite("semisaturation", problem.semisaturation)
    solution = solve(
        problem, options.solver, options.tol, options.max_iter, options.check_stability, start
    )
    return solution._replace(y=_contiguous(solution.y), a=_contiguous(solution.a))


def _solve_by_kernels(problem: Problem, options: SolveOptions) -> Solution:
    """By one launch; the circuits that it leaves open go through :func:`_solve`."""
    assert options.shared is not None
    solution, settled = cuda.solve(
        problem,
        options.shared,
        options.tol,
        attainable(options.tol, problem.input_drive.dtype),
        options.max_iter,
        options.check_stability,
    )
    # The host waits for the device here.
    left = (~settled.cpu()).nonzero().squeeze(-1)
    if left.numel():
        if options.check_values is not None:
            options.check_values()
        left = left.to(settled.device)
        for part, again in zip(solution, _solve(problem.select(left), options), strict=True):
            part[left] = again
    return solution


class _SteadyState(torch.autograd.Function):
    """``(y, a, residual, iterations, status, reached, period, time)`` from the circuit's tensors.

    The arguments after them, ``y`` and ``a`` of a start or two times None, have no gradient.
    """

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        options: SolveOptions = args[0]
        shape, batch = args[1].shape, args[1].shape[:-1]
        problem = _problem(options, *args[1:7])
        with equations.full_precision(args[1]):
            if args[7] is not None:
                start = [part.expand(shape).reshape(-1, shape[-1]) for part in args[7:]]
                solution = _solve(problem, options, (start[0], start[1]))
            elif options.shared is None:
                solution = _solve(problem, options)
            else:
                solution = _solve_by_kernels(problem, options)
        y, a, *others = solution
        return (y.reshape(shape), a.reshape(shape), *(part.reshape(batch) for part in others))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        # The check of values holds on to the input and its graph, and has done its work.
        ctx.options = inputs[0]._replace(check_values=None)
        y, a, _, _, status, *_ = output
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[1:7], y, a, status)
        ctx.save_for_forward(*inputs[1:7], y, a, status)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        # Read once: a checkpoint computes the saved tensors anew for each reading, but only once.
        saved = ctx.saved_tensors
        with equations.full_precision(saved[0]):
            return _pull_back(ctx.options, saved, grads, ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        with equations.full_precision(saved[0]):
            return _push_forward(ctx.options, saved, tangents)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, tuple[int, ...]]:
        """One more leading batch dimension: that is what the solver works on anyway."""
        core = (None, 1, 1, 2, 2, 1, 1, 1, 1)
        logical = [
            0 if tensor is None or k is None else tensor.ndim - k - (dim is not None)
            for tensor, dim, k in zip(args, in_dims, core, strict=True)
            if not isinstance(tensor, SolveOptions)
        ]
        batch_ndim = max(logical)
        moved: list[Any] = [args[0]]
        for tensor, dim, k in list(zip(args, in_dims, core, strict=True))[1:]:
            if tensor is not None and dim is not None:
                tensor = tensor.movedim(dim, 0)
                missing = batch_ndim - (tensor.ndim - 1 - k)
                tensor = tensor.reshape(tensor.shape[0], *[1] * missing, *tensor.shape[1:])
            moved.append(tensor)
        if in_dims[1] is None:
            moved[1] = moved[1].expand(info.batch_size, *moved[1].shape)
        return _SteadyState.apply(*moved), (0,) * len(Solution._fields)


def _pull_back(
    options: SolveOptions,
    saved: tuple[Any, ...],
    grads: tuple[Tensor | None, ...],
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of the inputs from those of ``y`` and ``a``."""
    *tensors, y, a, status = saved
    d, c, wr, w = tensors[:4]
    problem = _problem(options, *tensors)
    n = d.shape[-1]
    flat = [None if grad is None else grad.reshape(-1, n) for grad in grads[:2]]
    arguments = (problem, y.reshape(-1, n), a.reshape(-1, n), status.reshape(-1), *flat, options)
    plain = not torch.is_grad_enabled() and not any(
        grad is not None and is_transformed(grad) for grad in flat
    )
    if options.shared is not None and plain:
        adjoint = _adjoint_by_kernels(*arguments)
    else:
        adjoint = _adjoint(*arguments)
    lam_y, lam_a = adjoint.y.reshape(d.shape), adjoint.a.reshape(d.shape)
    grad_wr = grad_w = None
    if needs[3] and wr is not None:
        active = equations.drive(y, options.rectified)
        grad_wr = _outer(adjoint.gained.reshape(d.shape), active, wr)
    if needs[4]:
        grad_w = _outer(lam_a, adjoint.pooled.reshape(d.shape), w)
    return (
        None,
        lam_y if needs[1] else None,
        lam_a.sum_to_size(c.shape) if needs[2] else None,
        grad_wr,
        grad_w,
        *[None] * 4,
    )


def _adjoint(
    problem: Problem,
    y: Tensor,
    a: Tensor,
    status: Tensor,
    g_y: Tensor | None,
    g_a: Tensor | None,
    options: SolveOptions,
) -> cuda.Adjoint:
    """The adjoint of ``(g_y, g_a)``, each ``(B, n)``, by torch."""
    parts = [torch.zeros_like(y) if part is None else part for part in (g_y, g_a)]
    # What did not converge is no steady state: it has no gradient and must not spoil others'.
    # A cotangent that is not finite gives NaN: it tells of something else, outside.
    unsolved = status != Status.CONVERGED
    g = torch.cat(parts, -1)
    broken = ~(unsolved | torch.isfinite(g).all(-1))
    y, a, g = _without(unsolved | broken, y, a, g)
    adjoint = _solve_adjoint(problem, y, a, g, options)
    adjoint_y, adjoint_a = torch.where(broken.unsqueeze(-1), torch.nan, adjoint).chunk(2, -1)
    gained = (1.0 - equations.inhibitory_firing_rate(a, options.exponent)) * adjoint_y
    pooled = equations.normalization_pool(y, a, options.exponent, options.rectified)
    return cuda.Adjoint(adjoint_y, adjoint_a, gained, pooled, torch.zeros_like(unsolved))


def _adjoint_by_kernels(
    problem: Problem,
    y: Tensor,
    a: Tensor,
    status: Tensor,
    g_y: Tensor | None,
    g_a: Tensor | None,
    options: SolveOptions,
) -> cuda.Adjoint:
    """The same by one launch; the circuits that it leaves open go through :func:`_adjoint`."""
    assert options.shared is not None
    adjoint = cuda.solve_adjoint(
        problem, options.shared, y, a, status, g_y, g_a, _accepted_error(options, y)
    )
    left = adjoint.failed.cpu().nonzero().squeeze(-1)
    if left.numel():
        left = left.to(y.device)
        grads = [None if part is None else part[left] for part in (g_y, g_a)]
        again = _adjoint(
            problem.select(left), y[left], a[left], status[left], grads[0], grads[1], options
        )
        for part, new in zip(adjoint, again, strict=True):
            part[left] = new
    return adjoint


def _push_forward(
    options: SolveOptions, saved: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Tensor | None, ...]:
    """Tangents of ``y`` and ``a`` from those of the inputs."""
    _refuse_nested_forward_mode()
    *tensors, y, a, status = saved
    problem = _problem(options, *tensors)
    n = y.shape[-1]
    d_t, c_t, wr_t, w_t = tangents[1:5]
    flow_y, flow_a = torch.zeros_like(y), torch.zeros_like(a)
    if d_t is not None:
        flow_y = flow_y + d_t
    if c_t is not None:
        flow_a = flow_a + c_t
    if wr_t is not None:
        gain = 1.0 - equations.inhibitory_firing_rate(a, options.exponent)
        active = equations.drive(y, options.rectified)
        flow_y = flow_y + gain * equations.matvec(wr_t, active)
    if w_t is not None:
        s = equations.inhibitory_firing_rate(a, options.exponent)
        normalized = equations.drive(y, options.rectified) * s
        flow_a = flow_a + equations.pooled_power(w_t, normalized, options.exponent)
    unsolved = (status != Status.CONVERGED).reshape(-1)
    flow = torch.cat([flow_y, flow_a], -1).reshape(-1, 2 * n)
    broken = ~(unsolved | torch.isfinite(flow).all(-1))
    state = _without(unsolved | broken, y.reshape(-1, n), a.reshape(-1, n), flow)
    tangent, error = _solve_tangent(problem, *state)
    failed = ~(error <= _accepted_error(options, flow))
    if _report_failed(failed, options):
        tangent, _ = _solve_tangent(problem, *_without(failed, *state))
    tangent_y, tangent_a = torch.where(broken.unsqueeze(-1), torch.nan, tangent).chunk(2, -1)
    tangent_y, tangent_a = tangent_y.reshape(y.shape), tangent_a.reshape(a.shape)
    return _contiguous(tangent_y), _contiguous(tangent_a), *[None] * (len(Solution._fields) - 2)


def _solve_tangent(problem: Problem, y: Tensor, a: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """``-J^-1 flow``, ``(B, 2n)``, and its relative residual ``(B,)``."""
    jacobian = problem.jacobian(y, a, unit_tau=True)
    tangent = torch.linalg.solve_ex(jacobian, -flow)[0]
    return tangent, tangent_residual(jacobian, tangent, flow)


def _without(
    left_out: Tensor, y: Tensor, a: Tensor, right_side: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """States ``(B, n)`` and a right-hand side, with trivial ones for some circuits.

    With ``y = 0``, ``a = 1`` the Jacobian is ``-I``: these circuits' linear system, and all its
    derivatives, give 0, where that of their own state may give NaN.
    """
    left_out = left_out.unsqueeze(-1)
    return (
        torch.where(left_out, 0.0, y),
        torch.where(left_out, 1.0, a),
        torch.where(left_out, 0.0, right_side),
    )


def _refuse_nested_forward_mode() -> None:
    """Forward mode over forward mode would lose terms: the rule sees no outer tangents."""
    levels = [level.key() for level in retrieve_all_functorch_interpreters()]
    if levels.count(TransformType.Jvp) > 1:
        raise NotImplementedError(
            "a steady state has no forward-mode derivative of a forward-mode derivative; use "
            "torch.func.jacfwd(torch.func.jacrev(f)) or torch.func.hessian(f)"
        )


def _contiguous(tensor: Tensor) -> Tensor:
    """A copy with plain strides: forward mode wants those of a value and its tangent alike."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _outer(left: Tensor, right: Tensor, weight: Tensor) -> Tensor:
    """Gradient of ``left . (weight @ right)`` by ``weight``, summed over what shares the weight."""
    if weight.ndim == 2:
        n = weight.shape[-1]
        return left.reshape(-1, n).mT @ right.reshape(-1, n)
    return (left.unsqueeze(-1) * right.unsqueeze(-2)).sum_to_size(weight.shape)


def _solve_adjoint(
    problem: Problem, y: Tensor, a: Tensor, g: Tensor, options: SolveOptions
) -> Tensor:
    """The adjoint of every sample: iteratively, else densely; failures are never silent."""
    accepted = _accepted_error(options, g)
    second_order = torch.is_grad_enabled()
    if problem.recurrent_weight is None or (
        not second_order and not is_transformed(g) and has_identity_recurrence(problem)
    ):
        return solve_adjoint_identity(problem, y, a, g)
    if second_order or is_transformed(g):
        # The dense solve has no loop that depends on values, and differentiates.
        adjoint = solve_adjoint_dense(problem, y, a, g)
        error = adjoint_residual(problem, y, a, adjoint, g, direct=True)
        failed = ~(error <= accepted)
        if _report_failed(failed, options):
            adjoint = solve_adjoint_dense(problem, *_without(failed, y, a, g))
    else:
        adjoint, error = solve_adjoint_iteratively(problem, y, a, g, 0.5 * accepted)
        unsolved = (~(error <= accepted)).nonzero().squeeze(-1)
        chunk = max(1, _ENTRIES_AT_A_TIME // g.shape[-1] ** 2)
        for left in unsolved.split(chunk) if unsolved.numel() else ():
            part = problem.select(left)
            dense = solve_adjoint_dense(part, y[left], a[left], g[left])
            adjoint[left] = dense
            error[left] = adjoint_residual(part, y[left], a[left], dense, g[left], direct=True)
        failed = ~(error <= accepted)
        if _report_failed(failed, options):
            adjoint = torch.where(failed.unsqueeze(-1), 0.0, adjoint)
    return adjoint


def _accepted_error(options: SolveOptions, like: Tensor) -> float:
    """Relative residual of a linear solve that counts as solved."""
    return max(options.tol, 512.0 * torch.finfo(like.dtype).eps)


def _report_failed(failed: Tensor, options: SolveOptions) -> bool:
    """Warn or raise where a linear system could not be solved; whether there are any."""
    failed = physical(failed)
    count = int(failed.sum())
    if count == 0:
        return False
    message = (
        f"the adjoint equation of {count} of {failed.numel()} circuits could not be solved "
        "(their Jacobian is close to singular)"
    )
    if options.raise_on_failure:
        raise SteadyStateError(message)
    warn_caller(f"{message}; their gradient is left out", AdjointWarning)
    return True


def steady_state_function(
    options: SolveOptions,
    input_drive: Tensor,
    semisaturation: Tensor,
    recurrent_weight: Tensor | None,
    normalization_weight: Tensor,
    tau_y: Tensor,
    tau_a: Tensor,
    start: tuple[Tensor, Tensor] | None = None,
) -> Solution:
    """The solution, of the batch shape, which ``input_drive`` has in full.

    With a ``start``, ``y`` and ``a`` that broadcast to the shape of ``input_drive``, it is where
    the dynamics from there end.
    """
    refuse_export()
    tensors = (
        input_drive,
        semisaturation,
        recurrent_weight,
        normalization_weight,
        tau_y,
        tau_a,
        *(start or (None, None)),
    )
    return Solution(*_SteadyState.apply(options, *tensors))
