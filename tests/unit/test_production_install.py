"""In a production install without the extras, every production program can be imported, and a command that needs
an extra names it.
"""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from tests.kit.paths import ROOT

# Installs an import finder before all others, so that the modules of the extras appear not to be installed.
WITHOUT_EXTRAS = """
import importlib.metadata as metadata, sys
hidden = set({hidden!r})

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

real = metadata.version
def version(name):
    if name in {names!r}:
        raise metadata.PackageNotFoundError(name)
    return real(name)

sys.meta_path.insert(0, Hide())
metadata.version = version
"""


def names_of_extras() -> set[str]:
    """Returns the distributions that are required only by extras, not by the base installation."""
    wanted = [Requirement(text) for text in metadata.requires("replays-ingest") or []]
    always = {
        requirement.name
        for requirement in wanted
        if requirement.marker is None or "extra" not in str(requirement.marker)
    }
    return {requirement.name for requirement in wanted} - always


def run(program: str) -> subprocess.CompletedProcess[str]:
    """Runs a Python program without the extras."""
    names = names_of_extras()
    hidden = {
        module
        for module, owners in metadata.packages_distributions().items()
        if set(owners) and {owner.lower() for owner in owners} <= {name.lower() for name in names}
    }
    begin = WITHOUT_EXTRAS.format(hidden=sorted(hidden), names=sorted(names))
    return subprocess.run(
        [sys.executable, "-c", begin + program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "module",
    [
        "ingest.reader.process",
        "ingest.cli",
        "tasks.celery",
        "tasks.flower.start",
        "celeryconfig",
        "ingest.cli.replays",
    ],
)
def test_production_programs_need_no_extra(module: str) -> None:
    result = run(f"import {module}")

    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("words", [["demo"], ["local", "up"]], ids=" ".join)
def test_a_command_of_an_extra_names_it(words: list[str]) -> None:
    """If its extra is missing, a command exits with 1 and prints one line that says what to install."""
    result = run(f"from ingest.cli.main import main; main({words!r})")

    assert result.returncode == 1
    assert "pip install 'replays-ingest[local]'" in result.stderr
    assert "Traceback" not in result.stderr
