"""Coverage is aggregated per package, and every file belongs to a package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.coverage_floors import REPOSITORY, by_package, floors

FLOORS = {"ingest": 0.0, "ingest/core": 50.0}


def file_coverage(statements: int, ran: int) -> dict[str, dict[str, int]]:
    """Returns the entry of one file in the coverage report."""
    return {
        "summary": {"num_statements": statements, "covered_lines": ran, "num_branches": 2, "covered_branches": 1},
    }


def test_a_file_counts_for_the_deepest_package():
    """The lines and branches of a file are counted for the deepest package that contains it."""
    files = {
        "ingest/settings.py": file_coverage(8, 0),
        "ingest/core/a.py": file_coverage(8, 8),
        "ingest/core/b/c.py": file_coverage(8, 4),
    }

    shares = by_package(files, FLOORS)

    assert (shares["ingest"].total, shares["ingest"].covered) == (10, 1)
    assert (shares["ingest/core"].total, shares["ingest/core"].covered) == (20, 14)
    assert shares["ingest/core"].percent == 70.0


def test_an_unmeasured_package_is_at_zero():
    """The coverage of a package that was not measured counts as zero."""
    assert by_package({}, FLOORS)["ingest/core"].percent == 0.0


def test_a_file_without_a_package_is_an_error():
    """A file whose package has no floor is an error, so that a new package gets a floor."""
    with pytest.raises(KeyError, match=r"web/page\.py belongs to no package"):
        by_package({"web/page.py": file_coverage(1, 1)}, FLOORS)


def test_the_repository_has_a_floor_for_every_package():
    """Every package of the repository has a floor, and no floor is zero.

    The floor of `ingest` applies only to the modules directly in it.
    """
    listed = floors(REPOSITORY / "pyproject.toml")
    subpackages = {f"ingest/{init.parent.name}" for init in (REPOSITORY / "ingest").glob("*/__init__.py")}

    assert subpackages <= set(listed)
    files = [
        path.relative_to(REPOSITORY) for top in ("ingest", "tasks") for path in (REPOSITORY / top).rglob("*.py")
    ]

    assert set(by_package({str(path): file_coverage(1, 1) for path in files}, listed)) == set(listed)
    assert all((REPOSITORY / Path(package)).is_dir() and floor > 0 for package, floor in listed.items())


def test_unit_tests_of_every_package_run_under_coverage():
    """The unit tests of every package run under coverage; otherwise the coverage of the package would be near
    zero.
    """
    covered = re.search(
        r"^COVERED := \$\(addprefix tests/unit/,([^)]*)\)", (REPOSITORY / "Makefile").read_text(), re.M
    )

    assert covered is not None
    packages = {init.parent.name for init in (REPOSITORY / "ingest").glob("*/__init__.py")}
    tested = {package for package in packages if (REPOSITORY / "tests/unit" / package).is_dir()}
    assert tested <= set(covered[1].split())
