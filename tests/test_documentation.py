"""The code in the README and in docs/ runs, prints what it says, and names what exists."""

import doctest
import functools
import importlib.util
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import pytest
import torch
from matplotlib import pyplot

matplotlib.use("Agg")

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
        *DOCS.rglob("*.md"),
    )
)
TUTORIALS = [page for page in PAGES if page.startswith("docs/tutorials/")]
LARGEST_PICTURE = 150_000  # bytes
LONGEST_README = 130  # lines


class Block(NamedTuple):
    """A block of code of a page."""

    line: int
    """Where it begins."""
    code: str
    needs: str | None
    """A package that the page says it needs, beyond this project's own."""


def blocks(page: str, language: str) -> Iterator[Block]:
    """The page's blocks in a language; those inside lists are indented."""
    text = (ROOT / page).read_text()
    pattern = rf"(?:^<!-- needs (\w+) -->\n)?^( *)```{language}\n(.*?)^ *```$"
    for match in re.finditer(pattern, text, re.DOTALL | re.MULTILINE):
        needs, indent, code = match.groups()
        code = re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)
        yield Block(text[: match.start(3)].count("\n") + 1, code, needs)


@functools.cache
def run_page(page: str) -> tuple[dict[str, Any], list[str]]:
    """Run the page's Python blocks, one after the other; returns their names and files."""
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for line, code, needs in blocks(page, "python"):
        if needs is not None and importlib.util.find_spec(needs) is None:
            continue
        if code.startswith(">>>"):
            session = doctest.DocTestParser().get_doctest(code, names, page, page, line - 1)
            assert doctest.DocTestRunner().run(session, clear_globs=False).failed == 0
            names.update(session.globs)
        else:
            # Blank lines first, so that a traceback names the line of the page.
            exec(compile("\n" * (line - 1) + code, str(ROOT / page), "exec"), names)
    return names, sorted(os.listdir())


@pytest.fixture(autouse=True)
def _leave_no_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Pages write their files into an empty folder, and pictures are closed."""
    monkeypatch.chdir(tmp_path)
    yield
    pyplot.close("all")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page, "python"))])
def test_code_runs(page: str) -> None:
    with warnings.catch_warnings():
        if any(block.needs for block in blocks(page, "python")):
            warnings.simplefilter("ignore")  # of packages that are not this project's
        _, files = run_page(page)
    if page in TUTORIALS:
        embedded = re.findall(r"!\[[^\]]*\]\(figures/([^)]+)\)", (ROOT / page).read_text())
        assert embedded
        assert files == sorted(embedded)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    linked = re.findall(r"\]\((?!http|#)([^)#]+)", text)
    missing = [name for name in linked if not (ROOT / page).parent.joinpath(name).exists()]
    assert missing == []


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page, "bash"))])
def test_commands_exist_with_their_options(page: str) -> None:
    for _, code, _ in blocks(page, "bash"):
        for command in code.replace("\\\n", " ").splitlines():
            command = command.split("  #")[0]
            for script in re.findall(r"(?:examples|benchmarks)/\w+\.py|\.ci/\w+(?:\.py)?", command):
                assert (ROOT / script).exists(), command
            if re.search(r"(?:examples|benchmarks)/\w+\.py", command):
                options = command.split(".py", 1)[1]
                for option in re.findall(r"--([a-z][\w-]*)", options):
                    assert option in known_options(), command


def known_options() -> set[str]:
    """Names that could be options of an example or a benchmark, from their source."""
    words: set[str] = set()
    for folder in ("examples", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            words |= set(re.findall(r"[A-Za-z][\w-]*", path.read_text()))
    return {word.replace("_", "-") for word in words}


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_pictures_are_small() -> None:
    large = [path for path in DOCS.rglob("*.png") if path.stat().st_size > LARGEST_PICTURE]
    assert large == []


def test_readme_is_short_and_has_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= LONGEST_README
    install = "pip install -c requirements/locked.txt -e"
    assert f'{install} ".[examples]" && python examples/static_mnist.py\n' in text
    assert f'{install} ".[test]" && pytest -n auto --dist worksteal\n' in text


@pytest.mark.parametrize("page", TUTORIALS)
def test_tutorials_are_notebooks(page: str) -> None:
    jupytext = pytest.importorskip("jupytext")
    cells = jupytext.read(ROOT / page).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    assert code == [block.code.rstrip("\n") for block in blocks(page, "python")]


def test_numbers_of_the_page_on_the_theory() -> None:
    """The gamma oscillation of docs/theory.md, and its peaks."""
    names, _ = run_page("docs/theory.md")
    modes, spectrum, f = names["modes"], names["spectrum"], names["f"]
    assert (1000 * modes.frequency).tolist() == pytest.approx([27.1, 38.4, 52.6], abs=0.05)
    assert modes.damping_ratio.tolist() == pytest.approx([0.37, 0.29, 0.36], abs=0.005)
    assert f[spectrum.power[..., 0].argmax(-1)].tolist() == pytest.approx([0.029, 0.040, 0.056])


@pytest.mark.slow
def test_numbers_of_the_tutorial_on_v1() -> None:
    """The peaks of gamma that the text names."""
    names, _ = run_page("docs/tutorials/v1_circuit.md")
    assert names["peak"].tolist() == pytest.approx([1, 21, 53], abs=0.5)
