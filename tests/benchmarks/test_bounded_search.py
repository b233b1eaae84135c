"""The search drives no bounded cell out of its bound, and others out of theirs."""

import pytest

from bounded_search import search

pytestmark = pytest.mark.slow


def test_no_bounded_cell_leaves_its_bound_and_many_spectral_ones_diverge() -> None:
    options = {"batch": 40, "steps": 60, "long": 200, "few": 4, "seed": 1}
    found = search("bounded", 240, **options)
    assert (found["cells"], found["outside"]) == (240, 0)
    # The attacks start and push at the bound: a wrong one would be seen.
    assert found["reached"]["y"] > 0.99
    assert found["reached"]["a"] > 0.99
    assert search("spectral", 80, **options)["outside"] > 5
