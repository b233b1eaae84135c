"""Compare two checkouts bit by bit, over random cases of every public function.

PYTHONPATH=BEFORE python .ci/same_results.py write before.pt 200
PYTHONPATH=AFTER python .ci/same_results.py write after.pt 200
python .ci/same_results.py compare before.pt after.pt

The file is written after every case. What only one of two files has counts as a difference, but for
the cases after the last one of the shorter file.
"""

import itertools
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

_RECURRENCES = ("identity", "spectral", "unconstrained")
_THEOREMS = ("m_matrix_certificate", "coupled_oscillators", "oscillator_eigenvalues", "energy")
_THEOREMS += ("energy_form", "normal_modes", "fixed_points_2d", "critical_drive_2d")


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every tensor, number and string of a result, by its name."""
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _flat(f"{name}.{field.name}", getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for index, part in enumerate(value):
            yield from _flat(f"{name}[{index}]", part)
    elif isinstance(value, Tensor):
        yield name, value.detach().clone()
    elif value is None or isinstance(value, int | float | str):
        yield name, value


def _called(function: Any, *arguments: Any, **options: Any) -> Any:
    """The result, or the error as text."""
    try:
        return function(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _circuits(case: int) -> Iterator[tuple[str, Any]]:
    import deq_organics as deq

    torch.manual_seed(case)
    dtype = (torch.float32, torch.float64)[case % 2]
    n, batch = 1 + case % 7 * (1 + case % 3), ((), (4,), (2, 3))[case % 3]
    exponent, rectified = (2.0, 1.5, 3.0, 2.0)[case // 2 % 4], case % 5 == 0
    lead = batch if case % 4 == 0 else ()
    # Large circuits whose dynamics have to be followed take minutes.
    norm = (0.2, 0.4, 2.5 if n <= 2 else 0.6)[case % 3]
    wr = torch.randn(*lead, n, n, dtype=dtype) * norm / n**0.5
    given = [
        0.5 * torch.randn(*batch, n, dtype=dtype) / n**0.5,
        0.05 + torch.rand(n, dtype=dtype),
        None if case % 6 == 5 else wr,
        torch.rand(*lead, n, n, dtype=dtype),
    ]
    for tensor in given:
        if tensor is not None:
            tensor.requires_grad_()
    taus = [10.0 ** torch.empty(n, dtype=dtype).uniform_(-1, 1) for _ in "ya"]
    circuit = deq.Circuit(*given, *taus, exponent, rectified)
    leaves = [tensor for tensor in given if tensor is not None]
    first_state: Any = None
    for solver, start in (("auto", None), ("auto", "rest"), ("algorithm1", None)):
        state = _called(circuit.steady_state, solver, on_failure="ignore", start=start)
        first_state = first_state or state
        yield f"steady_state {solver} {start}", state
        if not isinstance(state, str):
            total = (state.y * torch.linspace(-1, 1, n, dtype=dtype)).sum() + state.rates.sum()
            first = _called(torch.autograd.grad, total, leaves, retain_graph=True)
            yield f"gradients {solver} {start}", first
            if case % 4 == 1:
                graph = torch.autograd.grad(total, leaves, create_graph=True)
                second = sum(part.square().sum() for part in graph)
                yield f"second {solver}", _called(torch.autograd.grad, second, leaves)
    state = first_state
    yield "text", str(state)
    yield "stability", deq.check_stability(circuit, state)
    yield "field", circuit.vector_field(state.y, state.a)
    yield "jacobian", circuit.jacobian(state.y, state.a)
    yield "choice", tuple(map(str, circuit.backend_for()))
    function = lambda d: deq.Circuit(d, *given[1:], *taus, exponent, rectified).steady_state().y  # noqa: E731
    if state.converged.all():
        tangent = (torch.ones_like(given[0]),)
        yield "jvp", _called(torch.func.jvp, function, (given[0],), tangent)
    if case % 3 == 0:
        return
    yield "simulate", _called(deq.simulate, circuit, torch.linspace(0, 5, 6, dtype=dtype))
    frequencies = torch.linspace(0.01, 1, 4, dtype=dtype)
    noise = torch.ones(n, dtype=dtype)
    yield "spectrum", _called(deq.cross_spectrum, circuit, state, frequencies, noise)
    yield "transfer", _called(deq.transfer_function, circuit, state, frequencies)
    yield "covariance", _called(deq.stationary_covariance, circuit, state, noise)
    for name in _THEOREMS:
        one, two = _called(getattr(deq, name), circuit), None
        if isinstance(one, str):
            two = _called(getattr(deq, name), circuit, state.y, state.a)
        yield name, (one, two)


def _modules(case: int) -> Iterator[tuple[str, Any]]:
    import deq_organics as deq
    import recurrent

    torch.manual_seed(case)
    x = torch.randn(5, 3, requires_grad=True)
    options = list(itertools.product(_RECURRENCES, ("attention", "tied"), (False, True)))
    recurrence, gain, rectified = options[case % len(options)]
    layer = deq.ORGaNICsDEQ(3, 4 + case % 9, recurrence, gain, rectified=rectified, backend="auto")
    for parameter in layer.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    rates = layer(x)
    yield "layer", (rates, torch.autograd.grad(rates.square().sum(), [x, *layer.parameters()]))
    yield "layer stability", deq.check_stability(layer, x)
    yield "layer choice", tuple(map(str, layer.backend_for(x)))
    yield "layer error", _called(layer, torch.full((2, 3), torch.nan))
    for backend in ("fused", "reference"):
        rnn = recurrent.ORGaNICsRNN(3, 5, backend=backend)
        torch.manual_seed(case)
        out, last = rnn(torch.randn(7, 2, 3))
        found = torch.autograd.grad(out.square().sum(), list(rnn.parameters()), allow_unused=True)
        yield f"rnn {backend}", (out, last, found)


def _compare(one: str, two: str) -> int:
    before, after = torch.load(one), torch.load(two)
    cases = 1 + min(max(int(name.split()[0]) for name in found) for found in (before, after))
    before, after = (
        {name: value for name, value in found.items() if int(name.split()[0]) < cases}
        for found in (before, after)
    )
    different = [
        name
        for name in before.keys() | after.keys()
        if name not in before or name not in after or not _equal(before[name], after[name])
    ]
    told = sum(isinstance(value, str) and "Error:" in value for value in before.values())
    print(f"{cases} cases: {len(before)} results ({told} of them errors), {len(different)} differ")
    print("\n".join(sorted(different)[:20]))
    return bool(different)


def _equal(one: Any, two: Any) -> bool:
    if not (isinstance(one, Tensor) and isinstance(two, Tensor)):
        return type(one) is type(two) and (one == two or (one != one and two != two))
    same = one.shape == two.shape and one.dtype == two.dtype
    return same and torch.equal(torch.nan_to_num(one), torch.nan_to_num(two))


if __name__ == "__main__":
    if sys.argv[1] == "compare":
        sys.exit(_compare(*sys.argv[2:]))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for case in range(int(sys.argv[3])):
        for name, value in (*_circuits(case), *_modules(case)):
            found |= dict(_flat(f"{case} {name}", value))
        # In one step, so that it can be compared at any time.
        torch.save(found, f"{sys.argv[2]}.part")
        os.replace(f"{sys.argv[2]}.part", sys.argv[2])
