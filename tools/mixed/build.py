"""Builds a release in a separate environment, with its wheel unpacked.

The new environment has its own interpreter and copy of `ingest` and `tasks`; a `.pth` file adds the libraries of
the current environment. Libraries that the release pins to other versions are installed into the new environment.
If all pins are equal, nothing is downloaded.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ingest.local.launch import Installation
from tools.mixed.releases import ROOT, ReleaseCommit

CACHE = ROOT / ".mixed"
PINS = "constraints.txt"
COMMAND_SECONDS_MAX = 300
# Programs start in this empty directory, because the interpreter and Celery import from the current directory
# first.
FOLDER = "empty"


class BuildFailed(Exception):
    """Raised if a release could not be built. The message is the output of the step that failed."""


@dataclass(frozen=True, slots=True)
class Release:
    """A release that can be run. `version`: the version that its processes report."""

    version: str
    installation: Installation


def released(release: ReleaseCommit, cache: Path = CACHE) -> Release:
    """Returns the release of a commit; the release is built when it is first used. Raises BuildFailed."""
    place = cache / f"{release.version}-{release.commit[:12]}-{sys.implementation.cache_tag}"
    if not place.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as name:
            tree, built = Path(name) / "tree", Path(name) / "built"
            _export(release.commit, tree)
            build(tree, built)
            built.rename(place)
    return Release(str(release.version), _installation(place))


def build(tree: Path, into: Path) -> Installation:
    """Builds the source tree of a release into an environment. Raises BuildFailed."""
    venv.create(into, symlinks=True, with_pip=False)
    libraries = _libraries(into)
    wheels = into / "wheels"
    _run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)], tree)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(libraries)
    others = other_pins((tree / PINS).read_text(), (ROOT / PINS).read_text())
    if others:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
        _run([*pip, "--target", str(libraries), *others], into)
    (libraries / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (into / FOLDER).mkdir()
    return _installation(into)


def other_pins(theirs: str, ours: str) -> list[str]:
    """Returns the pins of a release that differ from ours, as requirements."""
    return sorted(_pins(theirs) - _pins(ours))


def _pins(text: str) -> set[str]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {line for line in lines if line}


def _export(commit: str, tree: Path) -> None:
    tree.mkdir()
    archive = tree.with_suffix(".tar")
    _run(["git", "-C", str(ROOT), "archive", "--output", str(archive), commit], ROOT)
    shutil.unpack_archive(archive, tree, filter="data")


def _libraries(place: Path) -> Path:
    paths = {"base": str(place), "platbase": str(place)}
    return Path(sysconfig.get_path("purelib", "venv", vars=paths))


def _installation(place: Path) -> Installation:
    return Installation(place / "bin" / "python", place / FOLDER)


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX, check=False
    )
    if done.returncode != 0:
        raise BuildFailed(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
