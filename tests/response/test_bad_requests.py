"""What spectra and covariances refuse: arguments that do not fit the circuits."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from deq_organics import Circuit, cross_spectrum

D = torch.full((4, 3), 0.2)
GIVEN = Circuit(D, 0.5, 0.5 * torch.eye(3), torch.ones(3, 3))
F = torch.linspace(0, 1, 5)
ONES = torch.ones(3)
MISTAKES = [
    ({"circuit": None}, TypeError, r"circuit: got NoneType, expected a Circuit"),
    ({"frequency": [0.0, 1.0]}, TypeError, r"frequency: got list"),
    ({"frequency": torch.arange(3)}, TypeError, r"frequency: got dtype torch\.int64"),
    ({"frequency": torch.tensor(1.0)}, ValueError, r"frequency: got shape \(\), expected \(F,\)"),
    ({"frequency": F[:0]}, ValueError, r"frequency: got shape \(0,\)"),
    ({"frequency": F.double()}, ValueError, r"frequency: got torch\.float64, expected torch\.f"),
    ({"frequency": F.to("meta")}, ValueError, r"frequency: got device meta, expected cpu"),
    ({"frequency": F / 0}, ValueError, r"frequency: got 5 NaN or infinite"),
    ({"frequency": F - 0.5}, ValueError, r"frequency: got a smallest value of -0\.5, .* nonneg"),
    ({"noise_y": -1.0}, ValueError, r"noise_y: got -1\.0"),
    ({"noise_y": math.nan}, ValueError, r"noise_y: got nan"),
    ({"noise_y": "1"}, TypeError, r"noise_y: got '1' \(str\)"),
    ({"noise_y": None}, TypeError, r"noise_y: got None"),
    ({"noise_y": True}, TypeError, r"noise_y: got True"),
    ({"noise_y": -ONES}, ValueError, r"noise_y: got a smallest value of -1, expected nonnegative"),
    ({"noise_a": ONES / 0}, ValueError, r"noise_a: got 3 NaN or infinite"),
    ({"noise_a": torch.ones(2)}, ValueError, r"noise_a: got shape \(2,\), expected a number"),
    ({"noise_a": torch.ones(5, 3)}, ValueError, r"noise_a: got shape \(5, 3\), .* with \(4,\)"),
    ({"noise_a": ONES.double()}, ValueError, r"noise_a: got torch\.float64"),
    ({"noise_a": ONES.int()}, TypeError, r"noise_a: got dtype torch\.int32"),
    ({"noise_a": ONES.to("meta")}, ValueError, r"noise_a: got device meta"),
    ({"sided": "both"}, ValueError, r"sided: got 'both', expected one of 'one', 'two'"),
    ({"state": D}, TypeError, r"state: got Tensor, expected a SteadyState"),
    (
        {"state": replace(GIVEN, input_drive=D[0]).steady_state()},
        ValueError,
        r"state: got shape \(3,\), expected \(4, 3\)",
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), MISTAKES, ids=[m[2] for m in MISTAKES])
def test_bad_input(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cross_spectrum(**{"circuit": GIVEN, "frequency": F, **changes})
