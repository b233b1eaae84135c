"""The code in the README and in docs/ runs, and prints what it says."""

import doctest
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/theory.md"]


def blocks(page):
    """The page's Python blocks, with the line at which each begins."""
    text = (ROOT / page).read_text()
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield text[: match.start()].count("\n") + 2, match.group(1)


@pytest.mark.parametrize("page", PAGES)
def test_code_runs(page):
    torch.manual_seed(0)
    names: dict[str, object] = {}
    count = 0
    for line, code in blocks(page):
        if code.startswith(">>>"):
            session = doctest.DocTestParser().get_doctest(code, names, page, page, line)
            assert doctest.DocTestRunner().run(session).failed == 0
        else:
            # Blank lines first, so that a traceback names the line of the page.
            exec(compile("\n" * (line - 1) + code, str(ROOT / page), "exec"), names)
        count += 1
    assert count >= 2


@pytest.mark.parametrize("page", PAGES)
def test_files_that_it_names_exist(page):
    text = (ROOT / page).read_text()
    linked = re.findall(r"\]\((?!http|#)([^)#]+)\)", text)
    run = re.findall(r"(?:python|nproc-per-node 2) ((?:examples|benchmarks)/\w+\.py)", text)
    assert linked
    assert run
    missing = [name for name in linked if not (ROOT / page).parent.joinpath(name).exists()]
    missing += [name for name in run if not (ROOT / name).exists()]
    assert missing == []


def test_numbers_of_the_page_on_the_theory(capsys):
    """The gamma oscillation of docs/theory.md, and its peaks."""
    names: dict[str, object] = {}
    for _, code in blocks("docs/theory.md"):
        exec(code, names)
    modes, spectrum, f = names["modes"], names["spectrum"], names["f"]
    assert (1000 * modes.frequency).tolist() == pytest.approx([27.1, 38.4, 52.6], abs=0.05)
    assert modes.damping_ratio.tolist() == pytest.approx([0.37, 0.29, 0.36], abs=0.005)
    assert f[spectrum.power[..., 0].argmax(-1)].tolist() == pytest.approx([0.029, 0.040, 0.056])
