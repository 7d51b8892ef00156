"""Tests mirror the packages that they test, so that a test can be found from its package and vice versa."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.paths import ROOT

TESTS = ROOT / "tests"
MIRRORS = ("unit", "integration")
UNMIRRORED = ("eager", "e2e", "security", "simulation", "mutation", "cost")
# Test files that may lie directly in a mirror directory, because they test the whole repository or a module
# directly in ingest/.
DIRECT_FILES = {
    "test_architecture.py",
    "test_citations.py",
    "test_failure_cases.py",
    "test_import_cycles.py",
    "test_imports.py",
    "test_layout.py",
    "test_loaded_libraries.py",
    "test_production_install.py",
    "test_settings_fit.py",
}


def location_error(path: Path) -> str:
    """Returns what is wrong with the location of a test file, or an empty string."""
    *folders, name = path.relative_to(TESTS).parts
    kind = folders.pop(0) if folders else ""
    if kind in UNMIRRORED:
        return "" if not folders else f"{kind} has no folders"
    if kind not in MIRRORS:
        return f"not in one of {', '.join((*MIRRORS, *UNMIRRORED))}"
    if not folders:
        return "" if name in DIRECT_FILES else "in no package's folder"
    mirrored = Path(*folders)
    if (ROOT / "ingest" / mirrored).is_dir() or (ROOT / mirrored).is_dir():
        return ""
    return f"neither ingest/{mirrored} nor {mirrored} is a package"


def test_every_test_file_mirrors_a_package() -> None:
    """Every test file is in the folder that mirrors its package; tests/unit/reader/parsing tests
    ingest/reader/parsing.
    """
    found = {path.relative_to(ROOT).as_posix(): location_error(path) for path in TESTS.rglob("test_*.py")}

    assert {path: why for path, why in found.items() if why} == {}
    assert len(found) > 50


@pytest.mark.parametrize(
    "place",
    [
        "test_new.py",
        "unit/test_new.py",
        "unit/sinks/test_new.py",
        "integration/fleet/test_new.py",
        "e2e/web/test_new.py",
    ],
)
def test_a_misplaced_test_file_is_found(place: str) -> None:
    """A test file outside all folders is reported, and so is a test file in a folder that mirrors no package."""
    assert location_error(TESTS / place)


def test_every_folder_is_a_package_and_helpers_are_not_collected() -> None:
    """Every folder has an __init__.py, because helpers are imported by name, and `kit` contains no tests."""
    folders = {path.parent for path in TESTS.rglob("*.py")}

    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []
    assert list((TESTS / "kit").rglob("test_*.py")) == []
