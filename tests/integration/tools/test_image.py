"""Tests `python -m tools.image` when podman is missing, cannot run, cannot build, or builds an image that does not
run.

In these tests podman is a script; `make image` in CI runs the real podman.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.paths import ROOT

RUN_SECONDS_MAX = 120
SCRIPT = """#!/bin/sh
[ "$1" = --runtime=runc ] && shift
case "$1 $*" in
%s
"image image inspect"*) echo '[{"Id": "one", "Size": 1000000, "Config": {"User": "10001:10001"}}]';;
esac
"""


def run_with(tmp_path: Path, podman: str | None) -> tuple[int, str]:
    """Runs the command with a script in place of podman, and returns the exit code and the output.

    `script` is the body of a `case` on the first argument.
    """
    (tmp_path / "bin").mkdir()
    if podman is not None:
        program = tmp_path / "bin" / "podman"
        program.write_text(SCRIPT % podman)
        program.chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), "/usr/bin", "/bin"]) if podman else str(tmp_path / "bin")
    result = subprocess.run(
        [sys.executable, "-m", "tools.image"],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr


def test_without_podman_nothing_runs_and_ci_continues(tmp_path: Path):
    """Without podman, one line reports that nothing was done, and the exit code is 0, so that CI continues."""
    code, printed = run_with(tmp_path, None)

    assert code == 0, printed
    assert "NOT DONE" in printed
    assert "podman is not installed" in printed


@pytest.mark.parametrize(
    ("podman", "code", "pattern"),
    [
        ("run*) echo 'no namespaces' >&2; exit 126;;", 0, "NOT DONE .*no namespaces"),
        ("build*) echo 'NameResolutionError: no' >&2; exit 1;;", 0, "NOT DONE .*index did not respond"),
        ("build*) echo 'ERROR: hashes do not match' >&2; exit 1;;", 1, "FAILED .*hashes do not match"),
        ("*--help) echo broken >&2; exit 3;;", 1, "FAILED .*broken"),
    ],
)
def test_only_a_fault_of_the_image_fails(tmp_path: Path, podman: str, code: int, pattern: str):
    """A limitation of the machine gives exit code 0, and a defect of the image gives 1."""
    found, printed = run_with(tmp_path, podman)

    assert found == code, printed
    assert [line for line in printed.splitlines() if re.search(pattern, line)], printed
