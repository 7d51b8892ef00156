"""Imports point the way the data flows, and nothing points into the core but the core."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.paths import ROOT

OURS = ("ingest", "tasks", "tools", "celeryconfig", "benchmarks", "tests")
CORE_STANDARD = {
    "__future__", "base64", "binascii", "bisect", "collections", "collections.abc", "contextlib", "dataclasses",
    "enum", "functools", "hashlib", "ipaddress", "itertools", "math", "operator", "re", "struct", "typing", "uuid",
    "zlib",
}  # fmt: skip
CORE_PACKAGES = {"deflate", "isal", "msgspec", "xxhash"}
COMPOSITION = ("ingest/cli", "ingest/reader/process.py")

# file or folder -> what it may import of ours; the longest match counts
ALLOWED: dict[str, tuple[str, ...]] = {
    "ingest/core": ("ingest.core",),
    "ingest/core/model.py": ("tasks.wire",),
    "ingest/reader/kafka.py": ("ingest.core",),
    "ingest/reader/dispatch.py": (
        "ingest.core",
        "ingest.observe",
        "ingest.reader.completions",
        "ingest.reader.encoding",
        "ingest.reader.ports",
        "tasks.chord",
        "tasks.wire",
        "tasks.staging",
        "tasks.settings",
        "tasks.connection",
        "tasks.coordination",
        "tasks.errors",
    ),
    "ingest/reader/encoding.py": ("ingest.core", "tasks.wire"),
    "ingest/reader/runtime.py": ("ingest.core", "ingest.reader.ports"),
    "ingest/settings.py": ("tasks.loading", "tasks.settings"),
    "tasks/wire.py": (),
    "tasks/errors.py": (),
    "tasks/sinks": ("tasks.wire", "tasks.errors", "tasks.settings", "tasks.sinks", "tasks.kafka.options"),
}


def sources() -> list[Path]:
    return [path for package in ("ingest", "tasks", "tools") for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, `from a import b` as `a.b` (a superset is fine)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_a_file_imports_only_what_its_place_allows(path: Path) -> None:
    """The table of ARCHITECTURE.md, enforced."""
    name = name_of(path)
    ours = [module for module in imported(path) if within(module, OURS)]
    rules = [place for place in ALLOWED if name == place or name.startswith(place + "/")]
    if rules:
        allowed = ALLOWED[max(rules, key=len)]
        assert [module for module in ours if not within(module, allowed)] == []
    if name.startswith("tasks/"):
        assert [module for module in ours if within(module, ("ingest", "tools", "benchmarks", "tests"))] == []
    if name.startswith("ingest/") and not name.startswith(COMPOSITION):
        assert [module for module in ours if within(module, ("tools", "ingest.cli"))] == []


@pytest.mark.parametrize("path", sorted((ROOT / "ingest/core").rglob("*.py")), ids=name_of)
def test_the_core_reaches_nothing_outside(path: Path) -> None:
    """No clock, network, environment, logging or randomness: the standard library is a short list."""
    for module in imported(path):
        top = module.split(".")[0]
        if top in CORE_PACKAGES or top == "ingest" or within(module, ("tasks.wire",)):
            continue
        assert top in sys.stdlib_module_names, module
        assert any(within(module, (allowed,)) for allowed in CORE_STANDARD), module


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_a_file_opens_by_saying_what_it_owns(path: Path) -> None:
    """A module without a docstring leaves a newcomer guessing."""
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree), path


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_only_settings_read_the_environment(path: Path) -> None:
    """One place a package for configuration, or nobody knows what a process depends on."""
    if path.name in ("settings.py", "loading.py") or name_of(path).startswith(
        ("ingest/local/", "tools/", "ingest/cli/")
    ):
        return
    text = path.read_text()
    assert "os.environ" not in text
    assert "os.getenv" not in text
