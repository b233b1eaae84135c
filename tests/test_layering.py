"""Who imports whom: no private name across packages, no cycle between rooms."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("deq_organics", "recurrent")


def _modules() -> Iterator[tuple[str, tuple[str, ...], Path]]:
    """Every module's name, its package and its file."""
    for path in sorted(file for name in PACKAGES for file in (ROOT / name).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        package = parts[:-1]
        yield ".".join(package if parts[-1] == "__init__" else parts), package, path


MODULES = {name: (package, path) for name, package, path in _modules()}


def _imports(package: tuple[str, ...], path: Path) -> Iterator[tuple[str, str]]:
    """``(module, name)`` of everything that a file imports from the two packages."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *(node.module.split(".") if node.module else ())))
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield (inner, "") if inner in MODULES else (module, alias.name)


@pytest.mark.parametrize("name", MODULES)
def test_no_private_name_of_another_package(name: str) -> None:
    package, path = MODULES[name]
    for module, item in _imports(package, path):
        parts = [*module.split("."), item]
        if parts[0] not in PACKAGES or item == "__version__":
            continue
        for depth, part in enumerate(parts):
            private = part.startswith("_") and not part.startswith("__")
            owner = tuple(parts[:depth])
            inside = package[: len(owner)] == owner and (depth < len(parts) - 1 or not item)
            assert not private or inside or part == "_version", f"{name} imports {module} {item}"


def test_no_file_is_long() -> None:
    """A file that grows has more than one reason to change: split it by these."""
    folders = (*PACKAGES, "examples", "benchmarks", "tests")
    files = [file for name in folders for file in (ROOT / name).rglob("*.py")]
    lines = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files}
    assert not {name: count for name, count in lines.items() if count > 400}


def _room(module: str) -> str:
    """The folder below a package, or a file in the package itself."""
    return ".".join(module.split(".")[:2])


def test_no_cycle_between_rooms() -> None:
    needs: dict[str, set[str]] = {}
    for name, (package, path) in MODULES.items():
        if name in PACKAGES:
            continue
        own = needs.setdefault(_room(name), set())
        own |= {_room(module) for module, _ in _imports(package, path) if module in MODULES}
        own.discard(_room(name))
        own -= set(PACKAGES)
    while free := [room for room, others in needs.items() if not others & needs.keys()]:
        for room in free:
            del needs[room]
    assert not needs, "these rooms import each other: " + str(needs)
