"""The wheel installs our packages, and no top-level name that could belong to another project."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kit.paths import ROOT

OURS = {"ingest", "tasks", "celeryconfig.py"}
# Names that may be used by packages on the package index, or by packages of the team that installs ours. The last
# three names are also directories of this repository.
THEIRS = ("web", "local", "tools", "benchmarks", "tests")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as in the image: without network access and with the installed build backend."""
    if importlib.util.find_spec("hatchling") is None and not os.environ.get("CI"):
        pytest.skip("needs hatchling: run `make setup`")
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    (built,) = directory.glob("*.whl")
    return built


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel, and a directory outside the repository."""

    python: Path
    elsewhere: Path

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command from the virtual environment."""
        command = [str(self.python.with_name(words[0])), *words[1:]]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(
            command, cwd=self.elsewhere, env=environment, capture_output=True, text=True, timeout=120, check=False
        )


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel, installed alongside the packages in THEIRS. Dependencies come from this test's environment."""
    root = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "venv"], check=True, timeout=120)
    python = root / "venv" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(root / "venv"), "platbase": str(root / "venv")}))
    for name in THEIRS:
        (site / name).mkdir()
        (site / name / "__init__.py").write_text(f"OWNER = 'whoever installed {name}'\n")
    # The .pth file contains a plain path, so .pth files in that directory, including the one for our checkout, are
    # not processed.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ["-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, *install], check=True, timeout=120)
    (root / "elsewhere").mkdir()
    return Installed(python, root / "elsewhere")


def test_the_wheel_holds_our_two_packages_and_celerys_configuration(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == OURS
    assert len(tops) == len(OURS) + 1
    assert "tasks/sinks/schema/clickhouse/0001_replays.sql" in names
    assert "ingest/web/static/list.html" in names


def test_other_packages_keep_their_names(installed: Installed) -> None:
    """Other projects' packages that have the same names as our directories can still be imported."""
    owners = "; ".join(f"import {name}; print({name}.OWNER)" for name in THEIRS)

    result = installed.run("python", "-c", owners)

    assert result.stdout.splitlines() == [f"whoever installed {name}" for name in THEIRS], result.stderr


@pytest.mark.parametrize(
    "words", [["--help"], ["web", "--help"], ["local", "--help"], ["check", "--help"]], ids=" ".join
)
def test_our_commands_run_next_to_them(installed: Installed, words: list[str]) -> None:
    """The installed command runs outside the repository, alongside packages named like our directories."""
    result = installed.run("replays-ingest", *words)

    assert result.returncode == 0, result.stderr
    assert "Usage: replays-ingest" in result.stdout


def test_celery_finds_the_installed_fleet(installed: Installed) -> None:
    """Outside the repository, Celery finds our app, configuration and tasks in the installed wheel."""
    where = installed.run("python", "-c", "import celeryconfig, ingest, tasks; print(celeryconfig.__file__)")

    report = installed.run("python", "-m", "celery", "-A", "tasks", "report")

    assert str(installed.python.parents[1]) in where.stdout, where.stderr
    assert report.returncode == 0, report.stderr
    assert "task_default_queue: 'control'" in report.stdout
