"""No module of `ingest`, `tasks` or `tools` imports, however indirectly, a module that imports it.

Imports inside functions count: they hide a cycle, but do not remove it. Imports under `if TYPE_CHECKING:` do not
count, because they never run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("ingest", "tasks", "tools")

Graph = dict[str, set[str]]


def module_of(path: Path) -> str:
    """Returns the module of a file: `ingest.cli.main` for `ingest/cli/main.py`, and the package for its
    `__init__.py`.
    """
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def statements(body: Iterable[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yields the import statements that can run, at import time or later, but not those under TYPE_CHECKING."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and is_type_checking(node.test):
            yield from statements(node.orelse)
        else:
            for blocks in ("body", "orelse", "finalbody"):
                yield from statements(getattr(node, blocks, ()))
            for handler in getattr(node, "handlers", ()):
                yield from statements(handler.body)


def imported_modules(source: str, modules: Iterable[str]) -> set[str]:
    """Returns the `modules` that this source imports directly. `from a import b` counts as an import of `a.b` if
    that is a module, otherwise of `a`.

    The implicit import of the package `a` by `import a.b` is ignored, because the `__init__` of `a` is complete
    before `a.b` runs. If that `__init__` itself imports `a.b`, that import is counted.
    """
    known = set(modules)
    found: set[str] = set()
    for node in statements(ast.parse(source).body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            found |= {
                whole if (whole := f"{node.module}.{alias.name}") in known else str(node.module)
                for alias in node.names
            }
    return found & known


def graph() -> Graph:
    paths = {module_of(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    return {name: imported_modules(path.read_text(), paths) - {name} for name, path in paths.items()}


def find_cycle(edges: Mapping[str, set[str]]) -> list[str]:
    """Returns one cycle, with its first module repeated at the end, or an empty result if there is no cycle."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for each in sorted(edges.get(name, ())):
            if found := visit(each, [*trail, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(edges) if (found := visit(name, []))), [])


def test_there_is_no_import_cycle():
    """All modules can be ordered so that each module follows every module that it imports."""
    edges = graph()

    assert len(edges) > 150
    assert "tools.gameday.game" in edges["tools.gameday.faults"]
    assert find_cycle(edges) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b", {"a.b"}),
        ("from a import b", {"a.b"}),
        ("from a.b import name", {"a.b"}),
        ("try:\n    import a.b\nexcept ImportError:\n    import c", {"a.b", "c"}),
        ("class X:\n    import c", {"c"}),
        ("if TYPE_CHECKING:\n    import c\nelse:\n    import a.b", {"a.b"}),
        ("if typing.TYPE_CHECKING:\n    import c", set()),
        ("def later():\n    import c", {"c"}),
    ],
)
def test_every_form_of_import_is_found(source: str, expected: set[str]):
    """Every form of import is found, wherever in the module it occurs, unless it can never run."""
    assert imported_modules(source, {"a", "a.b", "c"}) == expected


def test_a_cycle_is_found_and_shown():
    """If three modules import each other in a circle, the cycle is found and shown."""
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "a"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
