"""Numbers as options: Python's and numpy's, and nothing else."""

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from deq_organics import Circuit, ORGaNICsDEQ
from deq_organics.checks import check_bool, check_choice, check_number, check_positive_int

INTEGERS = [3, np.int64(3), np.int8(3), np.uint16(3), np.array(3), np.array(3, dtype=np.int32)]
REALS = [*INTEGERS, 0.5, np.float64(0.5), np.float32(0.5), np.float16(0.5), np.longdouble(0.5),
         np.array(0.5), np.array(0.5, dtype=np.float32), Fraction(1, 2)]  # fmt: skip
NO_NUMBERS = [True, np.bool_(True), np.array(True), None, "3", 1j, np.complex64(3), np.array([3]),
              np.array(["3"]), torch.tensor(3), torch.tensor(3.0), Decimal(3), [3]]  # fmt: skip


@pytest.mark.parametrize("value", INTEGERS, ids=repr)
def test_integers(value: Any) -> None:
    found = check_positive_int("size", value)
    assert found == 3
    assert type(found) is int


@pytest.mark.parametrize("value", REALS, ids=repr)
def test_reals(value: Any) -> None:
    found = check_number("tol", value, low=0.0)
    assert found == float(value)
    assert type(found) is float


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_no_numbers(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^tol: got .*, expected a number"):
        check_number("tol", value)
    with pytest.raises(TypeError, match=r"^size: got .*, expected an int"):
        check_positive_int("size", value)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, np.float32(np.nan), np.array(np.inf), 10**400, -(10**400), -1]
)
def test_numbers_that_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^tol: got "):
        check_number("tol", value, low=0.0)


@pytest.mark.parametrize("value", [0.5, np.float32(3), np.array(3.0), Fraction(3)])
def test_no_integers(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^size: got .*, expected an int"):
        check_positive_int("size", value)


def test_integers_below_one() -> None:
    for value in (0, np.int64(0), np.array(-2), -(10**400)):
        with pytest.raises(ValueError, match=r"^size: got .*, expected an int of at least 1"):
            check_positive_int("size", value)


def test_bools() -> None:
    value: Any
    for value in (True, np.bool_(True), np.array(True)):
        assert check_bool("flag", value) is True
    for value in (1, 0.0, "True", None, np.int64(1), np.array([True]), torch.tensor(True)):
        with pytest.raises(TypeError, match=r"^flag: got "):
            check_bool("flag", value)


def test_choices() -> None:
    assert type(check_choice("mode", np.str_("a"), ("a", "b"))) is str
    for value in ("c", None, 1, np.array(["a", "b"]), ["a"]):
        with pytest.raises(ValueError, match=r"^mode: got .*, expected one of 'a', 'b'"):
            check_choice("mode", value, ("a", "b"))


def test_numpys_numbers_as_options() -> None:
    layer = ORGaNICsDEQ(
        np.int64(4), np.int32(3), rectified=np.bool_(False), tau_y=np.float32(2),  # type: ignore[arg-type]
        exponent=np.int8(2), semisaturation=np.float64(0.5), max_singular_value=np.array(1),  # type: ignore[arg-type]
        tol=np.float32(1e-5), max_iter=np.int64(50), verify_stability=np.bool_(True),  # type: ignore[arg-type]
    )  # fmt: skip
    plain = ORGaNICsDEQ(4, 3, tau_y=2.0, semisaturation=0.5, tol=1e-5, max_iter=50)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(5, 4)
    assert torch.equal(layer(x), plain(x))
    circuit = Circuit(
        torch.rand(4, 3),
        np.float64(0.5),
        None,
        torch.ones(3, 3),
        np.int64(2),  # type: ignore[arg-type]
        exponent=np.array(3),  # type: ignore[arg-type]
    )
    assert circuit.exponent == 3.0
    circuit.steady_state(tol=np.float64(1e-5), max_iter=np.int16(9), verify_stability=np.bool_(1))  # type: ignore[arg-type]
