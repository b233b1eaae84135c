"""Circuits by index, stacked, and in words."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from _circuits import DOUBLE, POOL, random_parameters, vector
from torch import Tensor

from deq_organics import Circuit, stack

# Leading dimensions of the tensors of circuits of shape (2, 3).
LEADS: list[dict[str, tuple[int, ...]]] = [
    {},
    {"inhibitory_drive": (3,), "normalization_weight": (2, 1)},
    {"recurrent_weight": (2, 3), "tau_a": (1, 3), "exponent": (2, 1)},
    {"recurrent_weight": (1, 1), "tau_y": (2, 3), "exponent": ()},
]
INDICES: list[Any] = [
    0,
    -1,
    np.int64(1),
    slice(1, None),
    (0, 2),
    (slice(None), 1),
    (..., 1),
    (0, ...),
    ...,
    (),
    None,
    (None, 1),
    [1, 0, 1],
    torch.tensor([[0, 1], [1, 1]]),
    torch.tensor([True, False]),
    (slice(None), torch.tensor([2, 0])),
    (torch.tensor([0, 1]), torch.tensor([2, 0])),
    np.array([1]),
    torch.tensor([[True, False, True], [False, True, False]]),
    [],
]


def _circuit(leads: dict[str, tuple[int, ...]], n: int = 4) -> Circuit:
    generator = torch.Generator().manual_seed(len(leads))

    def draw(name: str, *core: int) -> Tensor:
        shape = (*leads.get(name, ()), *core)
        return 0.2 + torch.rand(shape, generator=generator, dtype=DOUBLE)

    return Circuit(
        torch.randn(2, 3, n, generator=generator, dtype=DOUBLE),
        draw("inhibitory_drive", n),
        0.3 * draw("recurrent_weight", n, n),
        draw("normalization_weight", n, n),
        draw("tau_y", n),
        draw("tau_a", n),
        1.0 + draw("exponent", n) if "exponent" in leads else 2.0,
    )


@pytest.mark.parametrize("leads", LEADS)
@pytest.mark.parametrize("index", INDICES, ids=repr)
def test_an_index_chooses_circuits_as_of_a_tensor(
    leads: dict[str, tuple[int, ...]], index: Any
) -> None:
    """Whatever the tensors' own leading dimensions, the flow is that of the chosen circuits."""
    whole = _circuit(leads)
    part = whole[index]
    numbers = torch.arange(6).reshape(2, 3)[index]
    assert part.batch_shape == numbers.shape
    y = torch.linspace(-1, 1, 24, dtype=DOUBLE).reshape(2, 3, 4)
    a = y.square() + 0.5
    for mine, all_of_them in zip(
        part.vector_field(y.reshape(6, 4)[numbers], a.reshape(6, 4)[numbers]),
        whole.vector_field(y, a),
        strict=True,
    ):
        torch.testing.assert_close(mine, all_of_them.reshape(6, 4)[numbers])


def test_what_circuits_share_stays_shared() -> None:
    whole = _circuit({})
    part = whole[0, 1:]
    weight = part.recurrent_weight
    assert weight is not None
    assert weight.shape == (4, 4)
    assert part.input_drive.data_ptr() == whole.input_drive[0, 1:].data_ptr()


def test_a_part_has_the_gradient_of_its_circuits() -> None:
    drive = torch.ones(3, 2, dtype=DOUBLE, requires_grad=True)
    Circuit(drive, 0.5, None, POOL)[1].steady_state().rates.sum().backward()
    assert drive.grad is not None
    assert (drive.grad != 0).any(-1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (2, IndexError, "out of"),
        ((0, 0, 0), IndexError, "index: got 3 dimensions, expected at most 2"),
        ((0, 0, slice(None)), IndexError, "got 3 dimensions"),
        ((..., ...), IndexError, "several Ellipsis"),
        (True, TypeError, "index: got a bool"),
        ("0", TypeError, "index: got str"),
        (1.0, TypeError, "index: got float"),
        (torch.ones(2, 3, 4, dtype=torch.bool), IndexError, "got 3 dimensions"),
        (torch.ones(3, dtype=torch.bool), IndexError, "mask"),
    ],
)
def test_bad_indices(index: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _circuit({})[index]


def test_length_and_iteration() -> None:
    whole = _circuit(LEADS[2])
    assert len(whole) == len(list(whole)) == 2
    assert [part.batch_shape for part in whole] == [(3,), (3,)]
    alone = whole[0, 0]
    with pytest.raises(TypeError, match="without leading dimensions"):
        len(alone)
    with pytest.raises(TypeError, match="without leading dimensions"):
        list(alone)
    with pytest.raises(IndexError, match="expected at most 0"):
        alone[0]
    assert alone
    assert Circuit(torch.ones(0, 2), 1.0, None, torch.ones(2, 2))


def test_an_index_keeps_the_check_of_values() -> None:
    bad = Circuit.with_unchecked_values(
        _circuit({}).parameters._replace(tau_y=-torch.ones(4).double())
    )
    with pytest.raises(ValueError, match="tau_y: got a smallest value of -1"):
        bad[0].steady_state(backend="torch")


@pytest.mark.parametrize("leads", LEADS)
def test_stacked_circuits_are_found_again(leads: dict[str, tuple[int, ...]]) -> None:
    parts = [_circuit(leads), _circuit(leads)[torch.tensor([1, 0])]]
    whole = stack(parts)
    assert whole.batch_shape == (2, 2, 3)
    y = torch.linspace(-1, 1, 24, dtype=DOUBLE).reshape(2, 3, 4)
    for number, part in enumerate(parts):
        for mine, alone in zip(
            whole[number].vector_field(y, y.square() + 1.0),
            part.vector_field(y, y.square() + 1.0),
            strict=True,
        ):
            torch.testing.assert_close(mine, alone)


def test_stack_of_different_shapes_of_one_tensor_and_shared_ones() -> None:
    shared = random_parameters((), 3)
    first = Circuit(**{**shared, "inhibitory_drive": 0.5})
    second = Circuit(**{**shared, "inhibitory_drive": vector(0.1, 0.2, 0.3)})
    whole = stack([first, second, first])
    assert whole.batch_shape == (3,)
    assert whole.normalization_weight is first.normalization_weight
    assert whole.inhibitory_drive.tolist() == [[0.5] * 3, [0.1, 0.2, 0.3], [0.5] * 3]
    assert stack([first]).batch_shape == (1,)


def test_stack_is_differentiable() -> None:
    sigma = torch.tensor([0.2, 0.4], dtype=DOUBLE, requires_grad=True)
    z = vector(0.3, 0.1)
    whole = stack([Circuit.from_gains(z, 1.0, 1.0, each, None, POOL) for each in sigma])
    whole.steady_state().rates.sum().backward()
    assert sigma.grad is not None
    assert (sigma.grad < 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exponent": 3.0}, r"circuits\[1\]: got exponent 3.0, expected 2.0"),
        ({"exponent": vector(2.0, 2.0, 2.0)}, "got exponent a tensor"),
        ({"rectified": True}, "got rectified True, expected False"),
        ({"recurrent_weight": None}, "got recurrent_weight None .the identity., expected a matrix"),
        ({"input_drive": torch.ones(2, 3, dtype=DOUBLE)}, r"got leading dimensions \(2,\)"),
    ],
)
def test_circuits_that_do_not_stack(changes: dict[str, Any], message: str) -> None:
    given = random_parameters((), 3)
    with pytest.raises(ValueError, match=message):
        stack([Circuit(**given), Circuit(**{**given, **changes})])


def test_other_things_that_do_not_stack() -> None:
    given = random_parameters((), 3)
    circuit = Circuit(**given)
    with pytest.raises(ValueError, match=r"circuits\[1\]: got dtype torch.float32"):
        stack([circuit, circuit.to(torch.float32)])
    with pytest.raises(ValueError, match=r"circuits\[1\]: got a number of neurons of 2"):
        stack([circuit, Circuit(**random_parameters((), 2))])
    with pytest.raises(ValueError, match="circuits: got none"):
        stack([])
    with pytest.raises(TypeError, match=r"circuits\[0\]: got str"):
        stack(["circuit"])  # type: ignore[list-item]


@pytest.mark.parametrize("n", [1, 500])
def test_repr_fits_on_a_screen(n: int) -> None:
    for exponent in (2.0, torch.full((n,), 1.5)):
        circuit = Circuit(torch.rand(40, n), 0.5, None, torch.ones(n, n), exponent=exponent)
        lines = repr(circuit).splitlines()
        assert len(lines) <= 10
        assert max(map(len, lines)) <= 100
        assert "batch_shape=(40,)" in lines[0]


def test_repr_and_summary_where_values_cannot_be_read() -> None:
    meta = Circuit(torch.ones(2, 3), 0.5, torch.eye(3), torch.ones(3, 3)).to("meta")
    assert "input_drive: (2, 3), ?" in repr(meta)
    assert "?" in meta.summary()
    seen = []

    def rates(drive: Tensor) -> Tensor:
        circuit = Circuit(drive, 0.5, None, torch.ones(3, 3))
        seen.append(repr(circuit) + circuit.summary())
        return circuit.steady_state().rates

    torch.func.vmap(rates)(torch.ones(2, 3))
    assert "?" in seen[0]
    empty = Circuit(torch.ones(0, 2), 1.0, None, torch.ones(2, 2))
    assert "input_drive: (0, 2), ?" in repr(empty)
    assert "0 circuits" in empty.summary()


class TestSummary:
    def test_its_numbers(self) -> None:
        circuit = Circuit(vector([1.0, -3.0], [0.5, 0.5]), 0.25, 2 * torch.eye(2).double(), POOL)
        lines = {line.split("  ")[0]: line.split() for line in circuit.summary().splitlines()}
        assert lines["input drive"][-3:] == ["-3", "-0.25", "1"]
        assert lines["inhibitory drive"][-3:] == ["0.25", "0.25", "0.25"]
        assert lines["normalization weights"][-3:] == ["0.2", "0.625", "1"]
        assert lines["largest singular value of Wr"][-3:] == ["2", "2", "2"]
        assert lines["exponent"][-3:] == ["2", "2", "2"]
        assert circuit.summary().startswith("2 circuits, leading dimensions (2,), of 2 + 2 neurons")

    @pytest.mark.parametrize("form", ["plain", "markdown", "latex"])
    def test_every_line_has_the_same_columns(self, form: str) -> None:
        arguments = random_parameters((2,), 3)
        for changes in ({}, {"recurrent_weight": None}, {"exponent": vector(1.0, 2.0, 3.0)}):
            text = Circuit(**{**arguments, **changes}).summary(form)
            if form == "latex":
                rows = [line for line in text.splitlines() if line.endswith(r"\\")]
                assert {line.count("&") for line in rows} == {5}
                assert text.count("$") % 2 == 0
                assert "_" not in text.replace("$c = (b_0 \\sigma)^m$", "").replace(
                    "W_r", ""
                ).replace(r"\tau_y", "").replace(r"\tau_a", "")
            elif form == "markdown":
                rows = [line for line in text.splitlines() if line.startswith("|")]
                assert {line.replace(r"\|", "").count("|") for line in rows} == {7}
            else:
                assert max(map(len, text.splitlines())) <= 100

    def test_small_numbers_in_latex(self) -> None:
        circuit = Circuit(vector(1e-7, 1.0), 0.25, None, POOL)
        assert r"$1 \cdot 10^{-7}$" in circuit.summary("latex")

    def test_huge_values_have_a_finite_mean(self) -> None:
        circuit = Circuit(torch.full((4,), 3e38), 1.0, None, torch.eye(4))
        assert "inf" not in circuit.summary()

    def test_an_unknown_form(self, circuit: Callable[..., Circuit]) -> None:
        with pytest.raises(ValueError, match="form: got 'html', expected one of 'plain'"):
            circuit().summary("html")
