"""Sequences under torch's compiler, exporter and tracer."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recurrent import ORGaNICsCell, ORGaNICsRNN, State

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    # torch.export.load in torch 2.11.
    pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning"),
]
FAST: dict[str, Any] = {"max_step_y": 0.3, "max_step_a": 0.2, "max_step_b": 0.4}


def as_list(results: tuple[Tensor, State]) -> list[Tensor]:
    output, state = results
    return [output, *state]


PROGRAMS = [
    ({}, False, False),
    ({"recurrence": "spectral", "num_layers": 2}, True, True),
    ({"recurrence": "identity", "input_gain": "fixed", "readout": "rates"}, False, True),
    ({"dtype": torch.bfloat16, "batch_first": True}, False, True),
]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "strict", "with_state"), PROGRAMS)
def test_an_exported_program_gives_the_same(
    options: dict[str, Any], strict: bool, with_state: bool
) -> None:
    rnn = ORGaNICsRNN(3, 5, **FAST, **options)
    cell: Any = rnn.cells[0]
    dtype = cell.input_weight.dtype

    def draw() -> tuple[Any, ...]:
        x = torch.rand(2, 2, 3).to(dtype)
        return (x, tuple(rnn.draw_state(2))) if with_state else (x,)

    program, file = torch.export.export(rnn, draw(), strict=strict), io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    arguments = draw()
    for module in (program.module(), torch.export.load(file).module()):
        results = module(*arguments)
        assert isinstance(results[1], State)
        for got, expected in zip(as_list(results), as_list(rnn(*arguments)), strict=True):
            torch.testing.assert_close(got, expected)
    gradients = []
    for owner, result in ((module, results), (rnn, rnn(*arguments))):
        named = dict(owner.named_parameters())
        leaves = list(named.values())
        found = torch.autograd.grad(result[0].float().sum(), leaves, materialize_grads=True)
        gradients.append(dict(zip(named, found, strict=True)))
    grads, expected_grads = gradients
    for name, known in expected_grads.items():
        torch.testing.assert_close(grads[name], known)


@pytest.mark.slow
def test_the_batch_of_an_exported_program_may_be_dynamic() -> None:
    rnn, batch = ORGaNICsRNN(3, 5), torch.export.Dim("batch", min=2, max=64)
    arguments = (torch.rand(2, 3, 3), tuple(rnn.draw_state(3)))
    shapes = {"x": {1: batch}, "state": ({1: batch},) * 4}
    program = torch.export.export(rnn, arguments, dynamic_shapes=shapes).module()
    others = (torch.rand(2, 7, 3), tuple(rnn.draw_state(7)))
    for got, expected in zip(as_list(program(*others)), as_list(rnn(*others)), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.slow
def test_the_steps_of_an_exported_program_are_those_of_the_example() -> None:
    rnn, steps = ORGaNICsRNN(3, 5), torch.export.Dim("steps", min=2, max=64)
    with pytest.raises(Exception, match="specialized it to be a constant"):
        torch.export.export(rnn, (torch.rand(2, 3, 3),), dynamic_shapes={"x": {0: steps}})


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_packed_sequences_are_not_exported(strict: bool) -> None:
    packed = nn.utils.rnn.pack_sequence([torch.rand(3, 3), torch.rand(2, 3)])
    with pytest.raises(Exception, match="got a PackedSequence under torch"):
        torch.export.export(ORGaNICsRNN(3, 5), (packed,), strict=strict)


@pytest.mark.slow
def test_a_backend_that_cannot_be_exported_says_so() -> None:
    rnn = ORGaNICsRNN(3, 5, backend="fused")
    with pytest.raises(RuntimeError, match=r"'fused', which does not support torch\.export"):
        torch.export.export(rnn, (torch.rand(2, 2, 3),))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_module_gives_the_same() -> None:
    rnn, x = ORGaNICsRNN(3, 5), torch.rand(2, 2, 3)
    traced = torch.jit.trace(rnn, torch.rand(2, 2, 3), check_trace=False)
    for got, expected in zip(as_list(traced(x)), as_list(rnn(x)), strict=True):
        torch.testing.assert_close(got, expected)


class Classifier(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.encoder, self.readout = nn.Linear(4, 3), nn.Linear(5, 2)
        self.rnn = ORGaNICsRNN(3, 5, **FAST, **options)

    def forward(self, x: Tensor) -> Tensor:
        state = State(*(part + 0.1 for part in self.rnn.rest_state(x.shape[1])))
        return self.readout(self.rnn(self.encoder(x).tanh(), state)[1].y[-1])


@pytest.fixture
def _compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# Dynamo looks at the gradients of the state that is handed over.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.usefixtures("_compiler")
def test_a_compiled_model_gives_the_same() -> None:
    model, x = Classifier(recurrence="spectral"), torch.rand(3, 6, 4)
    compiled = torch.compile(model, backend="aot_eager")
    for batch in (6, 5, 3):
        expected = model(x[:, :batch])
        torch.testing.assert_close(compiled(x[:, :batch]), expected)
    results = [
        torch.autograd.grad(run(x).sum(), list(model.parameters())) for run in (compiled, model)
    ]
    for got, known in zip(*results, strict=True):
        torch.testing.assert_close(got, known)
    program = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(program(x), model(x))


@pytest.mark.slow
@pytest.mark.usefixtures("_compiler")
def test_one_graph_for_all_is_refused_with_the_reason() -> None:
    with pytest.raises(Exception, match="would unroll the whole sequence"):
        torch.compile(Classifier(), backend="eager", fullgraph=True)(torch.rand(3, 6, 4))


@pytest.mark.slow
@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"recurrence": "spectral"}])
def test_a_cell_is_one_graph(options: dict[str, Any]) -> None:
    cell = ORGaNICsCell(3, 5, **options)
    x, state = torch.rand(2, 3).to(cell.input_weight.dtype), cell.draw_state(2)
    compiled = torch.compile(cell, backend="aot_eager", fullgraph=True)
    results = [
        (new := run(x, state), torch.autograd.grad(new.y.sum() + new.b.sum(), used(cell)))
        for run in (compiled, cell)
    ]
    for got, known in zip(*((*new, *grads) for new, grads in results), strict=True):
        torch.testing.assert_close(got, known)
    program = torch.export.export(cell, (x, tuple(state))).module()
    torch.testing.assert_close(program(x, tuple(state)).a, cell(x, state).a)


def used(cell: ORGaNICsCell) -> list[Tensor]:
    wanted = ("input_weight", "gain_weight_x")
    return [
        parameter
        for name, parameter in cell.named_parameters()
        if name.removeprefix("parametrizations.").removesuffix(".original") in wanted
    ]
