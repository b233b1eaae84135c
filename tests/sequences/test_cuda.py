"""The Triton kernels against the oracle in double precision, and when they are not used.

Where there is no GPU they run under Triton's interpreter, whose products are plain float32.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from _compilation import H100_SHARED_MEMORY, MEASURED, Program, compile_for_gpu
from _derivatives import outputs_and_gradients
from _kernels import DEVICE, FIRST_ON_CPU, KERNELS, pass_self_checks
from torch import Tensor

from recurrent import ORGaNICsRNN, State
from recurrent.backends import cuda
from recurrent.backends.cuda import forward, tiles
from recurrent.backends.folding import fold

ACCURATE = tiles.Precision(torch.float32, "tf32x3")
TF32 = tiles.Precision(torch.float32, "tf32")
BFLOAT16 = tiles.Precision(torch.bfloat16, "tf32")
FAST: dict[str, Any] = {"max_step_y": 0.3, "max_step_a": 0.2, "max_step_b": 0.4}
MODELS: list[dict[str, Any]] = [{}, {"rectifier": "after_weights"}, {"rectified": False}]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"recurrence": "spectral"},
    {"recurrence": "identity"},
    {"recurrence": "unconstrained"},
    {"input_gain": "fixed"},
    {"learn_time_constants": False, "readout": "rates"},
    {"num_layers": 2, "semisaturation": 0.6},
]
ON_GPU = DEVICE.type == "cuda"
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="there is no CUDA device")
# The interpreter computes in NumPy, which warns where a float32 overflows as it should.
pytestmark = [KERNELS, pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")]


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels, on whatever device the tests run."""
    if not ON_GPU:
        monkeypatch.setattr(cuda, "kernel_refusal", lambda device: None)
        pass_self_checks(monkeypatch)


def relative_error(value: Tensor, reference: Tensor) -> float:
    norm = reference.norm()
    return float(((value.double() - reference).norm() / norm.clamp_min(1e-30)).detach())


def compare(
    rnn: ORGaNICsRNN,
    steps: int,
    batch: int,
    state: State | None = None,
    output_bar: float = 2e-6,
    gradient_bar: float = 1e-5,
) -> None:
    """Against float64, with random input, states and output gradients."""
    rnn.to(DEVICE)
    cell: Any = rnn.cells[0]
    if cell.recurrence == "spectral":
        # An orthogonal Wr sits on the kink of the bound, where each precision has its own gradient.
        with torch.no_grad():
            original = cell.parametrizations.recurrent_weight.original
            original.add_(torch.randn_like(original), alpha=0.3)
    layers, n = rnn.num_layers, rnn.hidden_size
    x = torch.rand(steps, batch, rnn.input_size, device=DEVICE)
    state = state or State(*torch.rand(4, layers, batch, n, device=DEVICE))
    state = State(*(part.to(DEVICE) for part in state))
    weights = [torch.randn(steps, batch, n), *torch.randn(4, layers, batch, n)]
    weights = [weight.to(DEVICE) for weight in weights]
    got, gradients = outputs_and_gradients(rnn, "cuda", x, state, weights)
    expected, expected_gradients = outputs_and_gradients(
        rnn, "reference", x, state, weights, torch.float64
    )
    for value, reference in zip(got, expected, strict=True):
        assert relative_error(value, reference) <= output_bar
    for name, gradient in gradients.items():
        assert relative_error(gradient, expected_gradients[name]) <= gradient_bar, name


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_reference(model: dict[str, Any], variant: dict[str, Any]) -> None:
    compare(ORGaNICsRNN(3, 6, **FAST, **{**variant, **model}), steps=5, batch=5)


# Each padded size, a whole tile of samples and less or more than one, one step, one neuron.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("units", "steps", "batch"),
    [(1, 1, 1), (16, 3, 8), (20, 1, 9), (64, 3, 1), (100, 2, 3), (128, 2, 8), (130, 2, 3)],
)
def test_sizes(units: int, steps: int, batch: int) -> None:
    compare(ORGaNICsRNN(2, units, **FAST), steps, batch)


@pytest.mark.slow
@pytest.mark.parametrize("units", [64, 128, 200] if ON_GPU else [10])
def test_a_long_sequence(units: int) -> None:
    rnn = ORGaNICsRNN(1, units)
    # The interpreter takes a tenth of a second a step: fewer steps there, and tighter bars.
    steps, batch, part = (784, 16, 1.0) if ON_GPU else (98, 2, 0.25)
    state = rnn.draw_state(batch)
    compare(rnn, steps, batch, state, output_bar=part * 2e-6, gradient_bar=part * 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("value", [0.0, -0.5])
def test_gradient_where_the_inhibition_is_silent(value: float) -> None:
    rnn = ORGaNICsRNN(2, 4, **FAST)
    state = rnn.draw_state(3)._replace(a=torch.full((1, 3, 4), value))
    compare(rnn, steps=4, batch=3, state=state)


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["output", "y", "a", "b", "b0"])
def test_gradient_of_one_result_alone(keep: str) -> None:
    rnn = ORGaNICsRNN(2, 4, device=DEVICE, **FAST)
    x = torch.rand(4, 3, 2, device=DEVICE)
    gradients = []
    for rnn.backend in ("cuda", "reference"):
        output, last = rnn(x)
        value = output if keep == "output" else getattr(last, keep)
        found = torch.autograd.grad(
            value.square().sum(), list(rnn.parameters()), materialize_grads=True
        )
        gradients.append(torch.cat([part.flatten() for part in found]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_backward_twice_over_one_graph() -> None:
    rnn = ORGaNICsRNN(2, 4, backend="cuda", device=DEVICE)
    loss = rnn(torch.rand(3, 3, 2, device=DEVICE))[0].square().sum()
    parameters = list(rnn.parameters())
    first, second = (torch.autograd.grad(loss, parameters, retain_graph=True) for _ in range(2))
    for left, right in zip(first, second, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("gains", ["dynamic", "fixed"])
@pytest.mark.parametrize("span", [1, 36, 1 << 25])
def test_without_gradients_the_numbers_are_the_same(
    gains: str, span: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "_SPAN_ELEMENTS", span)
    rnn = ORGaNICsRNN(2, 4, backend="cuda", input_gain=gains, device=DEVICE)
    x = torch.rand(8, 3, 2, device=DEVICE)
    expected, expected_last = rnn(x)
    with torch.no_grad():
        got, last = rnn(x)
    for value, reference in zip((got, *last), (expected, *expected_last), strict=True):
        torch.testing.assert_close(value, reference, rtol=0, atol=0)


@pytest.mark.slow
def test_the_state_given_is_not_changed() -> None:
    rnn = ORGaNICsRNN(2, 4, backend="cuda", device=DEVICE)
    state = rnn.draw_state(3)
    before = State(*(part.clone() for part in state))
    rnn(torch.rand(3, 3, 2, device=DEVICE), state)
    for part, known in zip(state, before, strict=True):
        torch.testing.assert_close(part, known, rtol=0, atol=0)


def test_second_derivatives_are_refused_by_name() -> None:
    rnn = ORGaNICsRNN(2, 4, backend="cuda", device=DEVICE)
    output, _ = rnn(torch.rand(3, 3, 2, device=DEVICE))
    with pytest.raises(RuntimeError, match=r"second derivatives.*expected backend='reference'"):
        torch.autograd.grad(output.sum(), list(rnn.parameters()), create_graph=True)


@pytest.fixture
def matmul_precision() -> Iterator[Callable[[str], None]]:
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision("highest")


def test_precision_is_that_of_torch(matmul_precision: Callable[[str], None]) -> None:
    expected = {"highest": "tf32x3", "high": "tf32", "medium": "tf32"}
    for name, dot in expected.items():
        matmul_precision(name)
        dtype = torch.bfloat16 if name == "medium" else torch.float32
        assert tiles.chosen_precision() == (dtype, dot)


def test_precision_by_the_newer_option(matmul_precision: Callable[[str], None]) -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert tiles.chosen_precision() == (torch.float32, "tf32")
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert tiles.chosen_precision() == (torch.float32, "tf32x3")


# Half a unit in the last place of 8 and of 11 bits, and what rounds them together. The
# interpreter's products are of float32 only.
@needs_gpu
@pytest.mark.parametrize(("name", "bar"), [("medium", 1e-2), ("high", 2e-3)])
def test_products_of_fewer_bits(
    name: str, bar: float, matmul_precision: Callable[[str], None]
) -> None:
    rnn = ORGaNICsRNN(3, 40, device=DEVICE, **FAST)
    matmul_precision(name)
    compare(rnn, steps=6, batch=9, output_bar=bar, gradient_bar=5 * bar)
    with pytest.raises(AssertionError):
        compare(rnn.float(), steps=6, batch=9)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    rnn, x = ORGaNICsRNN(2, 3), torch.rand(4, 1, 2)
    double = ORGaNICsRNN(2, 3, dtype=torch.float64).backend_for(x.double())
    assert double.backend.name == "fused"
    assert "cuda does not support torch.float64, only float32" in double.reason
    large = ORGaNICsRNN(2, 300).backend_for(x)
    assert "cuda does not support a hidden size of 300, only up to 256" in large.reason
    torch.func.vmap(lambda row: rnn(row)[0])(torch.rand(2, 4, 1, 2))
    monkeypatch.undo()
    choice = rnn.backend_for(x)
    assert choice.backend.name == FIRST_ON_CPU
    assert choice.reason.startswith("cuda does not support tensors on cpu, only on cuda")
    rnn.backend = "cuda"
    with pytest.raises(RuntimeError, match=r"'cuda', which does not support tensors on cpu"):
        rnn(x)


@needs_gpu
def test_a_gpu_takes_the_kernels() -> None:
    rnn = ORGaNICsRNN(2, 3, device=DEVICE)
    choice = rnn.backend_for(torch.rand(4, 1, 2, device=DEVICE))
    assert choice.backend.name == "cuda"
    assert choice.reason == "first choice"


@pytest.mark.slow
@pytest.mark.parametrize("units", [16, 32, 64, 128, 256])
@pytest.mark.parametrize(("shared", "smallest"), [(101376, 2), (166912, 2), (232448, 3)])
def test_tiles_fit_into_shared_memory(
    units: int, shared: int, smallest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of compute capability 8.9, 8.0 and 9.0, with blocks left to fetch ahead."""
    monkeypatch.setattr(tiles, "_shared_memory", lambda device: shared)
    for recurrence, gains in (
        ("identity", "dynamic"),
        ("spectral", "dynamic"),
        ("spectral", "fixed"),
    ):
        rnn = ORGaNICsRNN(1, units, recurrence=recurrence, input_gain=gains)
        cell: Any = rnn.cells[0]
        weights = fold(cell.parameters_of_step())
        for tile in (tiles.forward_tile(units), tiles.adjoint_tile(units)):
            constants = tile.arguments(weights, ACCURATE, DEVICE)
            blocks = constants["GROUP"] * (constants["STAGES"] - 1)
            assert 4 * blocks * constants["ROWS"] * constants["COLUMNS"] < shared
            assert constants["STAGES"] >= smallest
            assert weights.gates is not None or constants["GROUP"] in (1, 2)


POINTERS = {
    "sequence_kernel": (
        *("weights", "step_y", "step_a", "semisaturation", "gate_step", "y_state", "a_state"),
        *("gain_state", "drives", "gates", "ys", "activities", "gains"),
    ),
    "adjoint_kernel": (
        *("weights", "step_y", "step_a", "semisaturation", "gate_step", "adjoint_y", "adjoint_a"),
        *("adjoint_gain", "drives", "gates", "recurrent", "ys", "activities", "gains"),
        *("grad_ys", "grad_us", "grad_as", "grad_gates", "grad_drives", "sums"),
    ),
}
COUNTS = ("steps", "samples", "neurons")
# Bytes of spilled registers by padded size; at 256 a thread has but 128 registers.
LARGEST_STACK = {16: 64, 32: 64, 64: 320, 128: 320, 256: 768}


def program(
    kernel: str,
    units: int,
    precision: tiles.Precision = ACCURATE,
    missing: tuple[str, ...] = (),
    **options: Any,
) -> Program:
    """A kernel as the backend launches it on an H100; arguments that are `missing` are None."""
    forward = kernel == "sequence_kernel"
    tile = tiles.forward_tile(units) if forward else tiles.adjoint_tile(units)
    constants = {
        "RECTIFIED": True,
        "AFTER_WEIGHTS": False,
        "IDENTITY": False,
        "DYNAMIC": True,
        "KEEP" if forward else "GIVEN": True,
        **options,
    }
    rnn = ORGaNICsRNN(
        1,
        units,
        recurrence="identity" if constants["IDENTITY"] else "unconstrained",
        input_gain="dynamic" if constants["DYNAMIC"] else "fixed",
    )
    cell: Any = rnn.cells[0]
    weights = fold(cell.parameters_of_step())
    tile_arguments = tile.arguments(weights, precision, torch.device("cpu"))
    warps = tile_arguments.pop("num_warps")
    tile_arguments.pop("enable_fp_fusion")
    types = dict.fromkeys(POINTERS[kernel], "*fp32") | dict.fromkeys(COUNTS, "i32")
    if precision.dtype == torch.bfloat16:
        types["weights"] = "*bf16"
    constants |= dict.fromkeys(missing) | tile_arguments
    types = {name: kind for name, kind in types.items() if name not in missing}
    return Program("recurrent.backends.cuda._kernels", kernel, types, constants, warps)


@pytest.mark.slow
@MEASURED
def test_the_kernels_compile_for_a_gpu() -> None:
    programs = [
        *(program(kernel, units) for kernel in POINTERS for units in (16, 32, 64, 128, 256)),
        *(
            program(kernel, units, precision)
            for kernel in POINTERS
            for precision in (TF32, BFLOAT16)
            for units in (64, 128, 256)
        ),
        program("sequence_kernel", 64, missing=("activities", "gains"), KEEP=False),
        program("sequence_kernel", 64, missing=("gate_step", "gates", "gains"), DYNAMIC=False),
        program("adjoint_kernel", 64, missing=("gate_step", "gates", "grad_gates"), DYNAMIC=False),
        program("adjoint_kernel", 64, missing=("grad_ys",), GIVEN=False, IDENTITY=True),
    ]
    for one, used in zip(programs, compile_for_gpu(programs), strict=True):
        assert used.tensor_cores
        assert used.shared <= H100_SHARED_MEMORY
        assert used.stack <= LARGEST_STACK.get(one.constants["PADDED"], 0), one
