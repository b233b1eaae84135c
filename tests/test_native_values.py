"""A quick look at the values of a tensor by a C kernel."""

import pytest
import torch
from _kernels import NATIVE

from deq_organics.native.values import smallest_if_finite

pytestmark = NATIVE


@pytest.mark.parametrize("count", [1, 7, 8, 9, 33, 1000])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_look_at_values(count: int, value: float) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(count))
    assert smallest_if_finite(values) == float(values.min())
    for place in {0, count // 2, count - 1}:
        broken = values.clone()
        broken[place] = value
        assert smallest_if_finite(broken) is None
    assert smallest_if_finite(values.double()) is None
    assert smallest_if_finite(values[:0]) is None
