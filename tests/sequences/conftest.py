"""Helpers of the tests of sequences."""

from collections.abc import Iterator

import pytest
import torch
from _kernels import DEVICE, KERNELS, NATIVE, pass_self_checks

from recurrent.backends import cuda


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def double() -> Iterator[None]:
    """Double precision by default."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(
    params=[
        "reference",
        "fused",
        pytest.param(
            "native",
            marks=[NATIVE, pytest.mark.skipif(DEVICE.type != "cpu", reason="not on a GPU")],
        ),
        pytest.param("cuda", marks=KERNELS),
    ]
)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every backend by its name; the kernels run on the CPU where there is no GPU."""
    if request.param == "cuda" and DEVICE.type == "cpu":
        monkeypatch.setattr(cuda, "kernel_refusal", lambda device: None)
        pass_self_checks(monkeypatch)
    return request.param
