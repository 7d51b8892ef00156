"""`make` shows the progress of the installation only on a terminal, and uses uv if it works."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.paths import ROOT

# A script that stands in for `python3`, and for the `.venv/bin/python` that `-m venv` creates. It records each
# call.
PYTHON = """#!/bin/sh
echo "$@" >> calls
case "$2" in venv) mkdir -p "$3/bin"; cp "$0" "$3/bin/python";; esac
"""
UV = """#!/bin/sh
echo "uv $@" >> calls
exit {code}
"""
ARGUMENTS = "-c constraints.txt -e .[local,dev]"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the Makefile and the programs that it calls, except for uv."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin" / "python3", PYTHON)
    for name in ("sh", "make", "grep", "mkdir", "cp", "touch"):
        found = shutil.which(name)
        assert found is not None, name
        (tmp_path / "bin" / name).symlink_to(found)
    return tmp_path


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def calls_of_setup(checkout: Path, *, terminal: bool) -> list[str]:
    """Runs `make setup` and returns the calls that install packages."""
    ours, theirs = pty.openpty()
    try:
        subprocess.run(
            ["make", "setup"],
            cwd=checkout,
            env={"PATH": str(checkout / "bin")},
            stdout=theirs if terminal else subprocess.DEVNULL,
            stderr=sys.stderr,
            timeout=60,
            check=True,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    return [line for line in (checkout / "calls").read_text().splitlines() if " install " in f" {line} "]


@pytest.mark.parametrize(("terminal", "quiet"), [(True, ""), (False, "--quiet ")])
def test_progress_is_shown_on_a_terminal_only(checkout: Path, terminal: bool, quiet: str):
    """Progress is shown only on a terminal.

    On a new machine, pip takes minutes, so a terminal should show its progress. In the log of a CI run, progress
    output would add hundreds of lines.
    """
    assert calls_of_setup(checkout, terminal=terminal) == [
        f"-m pip install {quiet}--disable-pip-version-check {ARGUMENTS}"
    ]


def test_uv_is_used_if_there_is_one(checkout: Path):
    program(checkout / "bin" / "uv", UV.format(code=0))

    assert calls_of_setup(checkout, terminal=True) == [f"uv pip install --python .venv/bin/python {ARGUMENTS}"]


def test_pip_installs_if_uv_fails(checkout: Path):
    """If uv fails, for example because only pip is configured to use a mirror of the index, pip installs the
    packages.
    """
    program(checkout / "bin" / "uv", UV.format(code=2))

    assert [call.split()[0] for call in calls_of_setup(checkout, terminal=False)] == ["uv", "-m"]
