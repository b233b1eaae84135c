"""The kernels of the steady state fit into an H100, compiled without one."""

from typing import Any

import pytest
from _compilation import COMPILER, H100_SHARED_MEMORY, MEASURED, Program, compile_for_gpu
from _kernels import KERNELS

pytestmark = [KERNELS, MEASURED, pytest.mark.slow]

# What a call of the division in double precision takes, by the compiler.
CALL = {"3.6": 24, "3.8": 24}.get(COMPILER, 0)

KERNELS_OF = "deq_organics.steady_state.backends.triton._kernels"
SCALE = "deq_organics.singular_value._kernels"
SHARED = ("matrices", "diagonals", "references")
PREPARE = (
    "inhibitory_drive",
    "recurrent_weight",
    "normalization_weight",
    *SHARED,
    "transposed",
)
SOLVE = (
    "drive",
    "inhibitory_drive",
    *SHARED,
    "tau_y",
    "tau_a",
    "ys",
    "as_",
    "residuals",
)
ADJOINT = (
    "ys",
    "as_",
    "recurrent_drives",
    "grads_y",
    "grads_a",
    *SHARED,
    "adjoints_y",
    "adjoints_a",
    "gained",
    "pooled",
)


def pointers(names: tuple[str, ...], **others: str) -> dict[str, str]:
    return {**dict.fromkeys(names, "*fp32"), **others}


def programs(padded: int, rectified: bool) -> list[Program]:
    """Every program of one padded size, as the steady state launches it."""
    from deq_organics.steady_state.backends.triton.launch import _options

    options = _options(padded)
    warps = options["num_warps"]
    constants: dict[str, Any] = {
        name: options[name] for name in ("N", "DEPTH", "WEIGHTS", "INVERSE")
    }
    constants["RECTIFIED"] = rectified
    strides = dict.fromkeys(("stride_c", "stride_tau_y", "stride_tau_a", "n"), "i32")
    bounds = {"tol": "fp32", "accepted": "fp32", "max_iter": "i32"}
    found = {"iterations": "*i64", "statuses": "*i64", "settled": "*i1"}
    return [
        Program(
            KERNELS_OF,
            "solve_kernel",
            pointers(SOLVE, **found, **strides, **bounds),
            constants,
            warps,
        ),
        Program(
            KERNELS_OF,
            "adjoint_kernel",
            pointers(ADJOINT, statuses="*i64", failed="*i1", n="i32", **bounds),
            constants,
            warps,
        ),
    ]


def preparation() -> list[Program]:
    """What is computed once for a set of weights, at the largest size: the inverse, the bound."""
    pointers_of_bound = pointers(("weight", "scale", "slope", "right"), n="i32", bound="fp32")
    prepared = pointers(PREPARE, n="i32", typical_drive="fp32")
    return [
        Program(KERNELS_OF, "prepare_kernel", prepared, {"N": 128}, 8),
        Program(SCALE, "scale_kernel", pointers_of_bound, {"N": 128}, 8),
    ]


def test_programs_keep_their_matrices_in_registers() -> None:
    """All in one process: to start one takes as long as to compile two programs."""
    solves = [one for padded in (64, 128, 256) for one in programs(padded, padded != 64)]
    *solved, inverse, scale = compile_for_gpu([*solves, *preparation()])
    for one, resources in zip(solves, solved, strict=True):
        # Matrices would take 16 KiB and more.
        assert resources.stack <= CALL, one
        assert resources.shared <= H100_SHARED_MEMORY, one
        assert not resources.tensor_cores, one
    assert inverse.stack <= CALL
    # Operands split in three leave no room for a little of what is alive between two squarings.
    assert scale.stack <= 640
    assert scale.tensor_cores
    assert max(inverse.shared, scale.shared) <= H100_SHARED_MEMORY
