"""The steady state as a differentiable function of the circuit's parameters.

Implicit function theorem: with ``F = (tau_y dy/dt, tau_a da/dt)`` and its Jacobian ``J`` at the
steady state ``x``, ``dx = -J^-1 dF``. The reverse mode solves the adjoint equation once; memory
does not depend on how many iterations the forward solve took.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from .. import equations
from ..checks import refuse_export
from ..problem import CORE_DIMENSIONS, Problem
from .backends import Search
from .linear_systems import solve_tangent
from .status import Solution

__all__ = ["steady_state_function"]

_TENSORS = len(CORE_DIMENSIONS)
# The arguments after the first one, a start at their end.
_CORE = (*CORE_DIMENSIONS.values(), 1, 1)


class _Call(NamedTuple):
    """All of the function's arguments that are no tensors."""

    search: Search
    exponent: float | None
    """None where it is one of the tensors."""
    rectified: bool

    def problem(self, tensors: Any) -> Problem:
        """The flat problem of the function's first tensors."""
        *others, exponent = tensors
        return Problem._make((*others, self.exponent_of(exponent), self.rectified)).flat()

    def exponent_of(self, tensor: Tensor | None) -> float | Tensor:
        """The number, or the last of the function's tensors."""
        if tensor is not None:
            return tensor
        assert self.exponent is not None
        return self.exponent


class _SteadyState(torch.autograd.Function):
    """The fields of a :class:`Solution`, of the batch shape, from a problem's tensors.

    The arguments after them, ``y`` and ``a`` of a start or two times None, have no gradient.
    """

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        call, tensors, start = args[0], args[1 : _TENSORS + 1], args[_TENSORS + 1 :]
        shape, batch = tensors[0].shape, tensors[0].shape[:-1]
        flat = None
        with equations.full_precision(tensors[0]):
            if start[0] is not None:
                y, a = (part.expand(shape).reshape(-1, shape[-1]) for part in start)
                flat = (y, a)
            y, a, *others = call.search.solve(call.problem(tensors), flat)
        return (y.reshape(shape), a.reshape(shape), *(part.reshape(batch) for part in others))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call = inputs[0]
        y, a, _, _, status, *_ = output
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[1 : _TENSORS + 1], y, a, status)
        ctx.save_for_forward(*inputs[1 : _TENSORS + 1], y, a, status)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        # Read once: a checkpoint computes the saved tensors anew for each reading, but only once.
        saved = ctx.saved_tensors
        with equations.full_precision(saved[0]):
            return _pull_back(ctx.call, saved, grads, ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        with equations.full_precision(saved[0]):
            return _push_forward(ctx.call, saved, tangents)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, tuple[int, ...]]:
        """One more leading batch dimension: that is what the solver works on anyway."""
        tensors = list(zip(args[1:], in_dims[1:], _CORE, strict=True))
        # The leading dimensions of the argument that has most of them.
        leading = max(
            0 if tensor is None else tensor.ndim - core - (dim is not None)
            for tensor, dim, core in tensors
        )
        moved: list[Any] = []
        for tensor, dim, core in tensors:
            if tensor is not None and dim is not None:
                tensor = tensor.movedim(dim, 0)
                missing = leading - (tensor.ndim - 1 - core)
                tensor = tensor.reshape(tensor.shape[0], *[1] * missing, *tensor.shape[1:])
            moved.append(tensor)
        if in_dims[1] is None:
            moved[0] = moved[0].expand(info.batch_size, *moved[0].shape)
        return _SteadyState.apply(args[0], *moved), (0,) * len(Solution._fields)


def _pull_back(
    call: _Call,
    saved: tuple[Any, ...],
    grads: tuple[Tensor | None, ...],
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of the inputs from those of ``y`` and ``a``."""
    *tensors, y, a, status = saved
    d, c, wr, w = tensors[:4]
    m, n = tensors[-1], d.shape[-1]
    g_y, g_a = (None if grad is None else grad.reshape(-1, n) for grad in grads[:2])
    adjoint = call.search.adjoint(
        call.problem(tensors), y.reshape(-1, n), a.reshape(-1, n), status.reshape(-1), g_y, g_a
    )
    lam_y, lam_a = adjoint.y.reshape(d.shape), adjoint.a.reshape(d.shape)
    grad_wr = grad_w = grad_m = None
    if needs[3] and wr is not None:
        active = equations.drive(y, call.rectified)
        grad_wr = _outer(adjoint.gained.reshape(d.shape), active, wr)
    if needs[4]:
        grad_w = _outer(lam_a, adjoint.pooled.reshape(d.shape), w)
    if needs[_TENSORS] and m is not None:
        by_y, by_a = _slopes_by_exponent(call, tensors, y, a)
        grad_m = (lam_y * by_y + equations.matvec(w.mT, lam_a) * by_a).sum_to_size(m.shape)
    return (
        None,
        lam_y if needs[1] else None,
        lam_a.sum_to_size(c.shape) if needs[2] else None,
        grad_wr,
        grad_w,
        None,
        None,
        grad_m,
        None,
        None,
    )


def _push_forward(
    call: _Call, saved: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Tensor | None, ...]:
    """Tangents of ``y`` and ``a`` from those of the inputs."""
    _refuse_nested_forward_mode()
    *tensors, y, a, status = saved
    n = y.shape[-1]
    d_t, c_t, wr_t, w_t = tangents[1:5]
    m = call.exponent_of(tensors[-1])
    flow_y, flow_a = torch.zeros_like(y), torch.zeros_like(a)
    if d_t is not None:
        flow_y = flow_y + d_t
    if c_t is not None:
        flow_a = flow_a + c_t
    if wr_t is not None:
        gain = 1.0 - equations.inhibitory_firing_rate(a, m)
        active = equations.drive(y, call.rectified)
        flow_y = flow_y + gain * equations.matvec(wr_t, active)
    if w_t is not None:
        s = equations.inhibitory_firing_rate(a, m)
        normalized = equations.drive(y, call.rectified) * s
        flow_a = flow_a + equations.pooled_power(w_t, normalized, m)
    if (m_t := tangents[_TENSORS]) is not None:
        by_y, by_a = _slopes_by_exponent(call, tensors, y, a)
        flow_y = flow_y + by_y * m_t
        flow_a = flow_a + equations.matvec(tensors[3], by_a * m_t)
    flow = torch.cat([flow_y, flow_a], -1).reshape(-1, 2 * n)
    state = (y.reshape(-1, n), a.reshape(-1, n), status.reshape(-1))
    tangent = solve_tangent(call.problem(tensors), *state, flow, call.search.options)
    # With the strides of the values.
    parts = (
        part.reshape(y.shape).clone(memory_format=torch.contiguous_format)
        for part in tangent.chunk(2, -1)
    )
    return *parts, *[None] * (len(Solution._fields) - 2)


def _slopes_by_exponent(
    call: _Call, tensors: Sequence[Any], y: Tensor, a: Tensor
) -> tuple[Tensor, Tensor]:
    """By each neuron's exponent, ``(..., n)``: ``(1 - a+) Wr y`` and what ``W`` acts on."""
    wr, m = tensors[2], tensors[-1]
    active = equations.drive(y, call.rectified)
    decline = equations.inhibitory_firing_rate(a, m) * torch.where(a > 0, a, 1.0).log() / (m * m)
    silent = active == 0
    growth = torch.where(silent, 1.0, active).abs().log()
    pool = equations.normalization_pool(y, a, m, call.rectified) * growth
    return decline * equations.matvec(wr, active), torch.where(silent, 0.0, pool)


def _refuse_nested_forward_mode() -> None:
    """Forward mode over forward mode would lose terms: the rule sees no outer tangents."""
    levels = [level.key() for level in retrieve_all_functorch_interpreters()]
    if levels.count(TransformType.Jvp) > 1:
        raise NotImplementedError(
            "a steady state has no forward-mode derivative of a forward-mode derivative; use "
            "torch.func.jacfwd(torch.func.jacrev(f)) or torch.func.hessian(f)"
        )


def _outer(left: Tensor, right: Tensor, weight: Tensor) -> Tensor:
    """Gradient of ``left . (weight @ right)`` by ``weight``, summed over what shares the weight."""
    if weight.ndim == 2:
        n = weight.shape[-1]
        return left.reshape(-1, n).mT @ right.reshape(-1, n)
    return (left.unsqueeze(-1) * right.unsqueeze(-2)).sum_to_size(weight.shape)


def steady_state_function(
    search: Search, problem: Problem, start: tuple[Tensor, Tensor] | None = None
) -> Solution:
    """The solution, of the batch shape, which the problem's ``input_drive`` has in full.

    With a ``start``, ``y`` and ``a`` that broadcast to the shape of ``input_drive``, it is where
    the dynamics from there end.
    """
    refuse_export()
    *tensors, exponent, rectified = problem
    tensor = exponent if isinstance(exponent, Tensor) else None
    call = _Call(search, None if isinstance(exponent, Tensor) else exponent, rectified)
    return Solution(*_SteadyState.apply(call, *tensors, tensor, *(start or (None, None))))
