"""Compares the coverage of each package with its floor, and prints both.

    python -m tools.coverage_floors [--data .coverage/data]

Reads the data of `coverage run` and `coverage combine`, and the table `[tool.coverage_floors]` in pyproject.toml:
package directory -> minimum percentage of statements and branches covered. A file counts towards the deepest
listed package that contains it, and every package must be listed. The exit code is 1 if a package is below its
floor or was not measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coverage
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Share:
    """The number of statements and branches in a package, and how many of them are covered."""

    total: int = 0
    covered: int = 0

    @property
    def percent(self) -> float:
        """Covered percentage; 0 if nothing was measured."""
        return 100 * self.covered / self.total if self.total else 0.0

    def plus(self, summary: Mapping[str, int]) -> Share:
        """Returns the counts including one more file. `summary`: the file's summary in Coverage's JSON report."""
        return Share(
            self.total + summary["num_statements"] + summary.get("num_branches", 0),
            self.covered + summary["covered_lines"] + summary.get("covered_branches", 0),
        )


def floors(pyproject: Path) -> dict[str, float]:
    """Returns the minimum coverage of each package directory, in percent."""
    return dict(tomllib.loads(pyproject.read_text())["tool"]["coverage_floors"])


def by_package(files: Mapping[str, Any], packages: Mapping[str, float]) -> dict[str, Share]:
    """Returns the coverage of each package. `files`: the files in Coverage's JSON report, by path.

    Raises KeyError for a file without a package.
    """
    shares = dict.fromkeys(packages, Share())
    for path, measured in files.items():
        parents = [package for package in packages if path.startswith(f"{package}/")]
        if not parents:
            raise KeyError(f"{path} belongs to no package in [tool.coverage_floors]")
        package = max(parents, key=len)
        shares[package] = shares[package].plus(measured["summary"])
    return shares


def report(data: Path) -> dict[str, Any]:
    """Returns the files in Coverage's JSON report, by path relative to the repository's root."""
    measured = coverage.Coverage(data_file=str(data), config_file=str(REPOSITORY / "pyproject.toml"))
    measured.load()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        measured.json_report(outfile=file.name)
        return dict(json.loads(Path(file.name).read_text())["files"])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=REPOSITORY / ".coverage" / "data")
    packages = floors(REPOSITORY / "pyproject.toml")
    shares = by_package(report(parser.parse_args().data), packages)
    table = Table("package", "lines and branches", "covered", "percent", "floor", "")
    below = 0
    for package, floor in sorted(packages.items()):
        share = shares[package]
        failed = share.percent < floor
        below += failed
        table.add_row(
            package,
            f"{share.total:,}",
            f"{share.covered:,}",
            f"{share.percent:.1f}",
            f"{floor:g}",
            "BELOW" if failed else "ok",
        )
    Console(width=110).print(table)
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
