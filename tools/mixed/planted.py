"""Makes *planted releases*, which simulate newer releases: copies of the current code with a few patches.

As long as the previous release and the current code use the same formats, they cannot be used to test a change of
formats. `ADDITIVE` adds a field to the manifest, a field to the cut record, and a column with values. `NEWER` also
raises both format versions. `LOSSY` has a bug that loses rows, which a run must detect. Each patch replaces a
piece of code that occurs exactly once.
"""

from __future__ import annotations

import re
import shutil
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from tools.mixed.build import PINS, Release, build
from tools.mixed.releases import ROOT

COPIED_PATHS = ("ingest", "tasks", "celeryconfig.py", "pyproject.toml", "README.md", "LICENSE", PINS)
MIGRATIONS = Path("tasks/sinks/schema/clickhouse")
COLUMN = "planted"
MIGRATION = "ALTER TABLE replay_segments {on_cluster} ADD COLUMN IF NOT EXISTS planted Nullable(UInt8);\n"


class Kind(StrEnum):
    """The differences between the planted release and the current code."""

    ADDITIVE = "additive"
    NEWER = "newer"
    LOSSY = "lossy"


class Patch(NamedTuple):
    """A replacement in a file: the text before and after."""

    file: str
    before: str
    after: str


ADDED = (
    Patch("tasks/wire.py", "    version: int = VERSION\n\n    def of_stage", "    version: int = VERSION\n"
          '    planted: str = "yes"\n\n    def of_stage'),
    Patch("ingest/core/cut_record.py", 'return ";".join(fields)', 'return ";".join([*fields, "z=1"])'),
    Patch("ingest/core/parse/rows.py", '''f'"size_video":{video_bytes},"partition"''',
          '''f'"size_video":{video_bytes},"planted":1,"partition"'''),
)  # fmt: skip
RAISED = (
    Patch("tasks/wire.py", "VERSION = 1\n", "VERSION = 2\n"),
    Patch("ingest/core/cut_record.py", 'VERSION = "2"\n', 'VERSION = "3"\n'),
    Patch("ingest/core/cut_record.py", "    if version != VERSION:\n        return Record()",
          '    if version not in (VERSION, "2"):\n        return Record()'),
)  # fmt: skip
LOST = (
    # Settles a batch when only its blobs are durable, as in tools/explore/planted.py.
    Patch("ingest/core/flight.py", "if len(self.stages) > 1:", "if len(self.stages) > 2:"),
)
PATCHES = {Kind.ADDITIVE: ADDED, Kind.NEWER: (*ADDED, *RAISED), Kind.LOSSY: LOST}


class OutdatedPatch(Exception):
    """Raised if the code that a patch replaces has changed, so that the patch must be rewritten."""


def planted(kind: Kind, directory: Path) -> Release:
    """Builds the current code with the patches for this kind, in subdirectories of `directory`.

    Raises OutdatedPatch or BuildFailed.
    """
    tree = directory / f"{kind}-tree"
    copy(tree)
    for patch in PATCHES[kind]:
        apply(patch, tree)
    if kind is not Kind.LOSSY:
        newest = max(path.name for path in (tree / MIGRATIONS).glob("*.sql"))
        (tree / MIGRATIONS / f"{int(newest[:4]) + 1:04}_planted.sql").write_text(MIGRATION)
    version = _label(tree / "pyproject.toml", kind)
    return Release(version, build(tree, directory / kind))


def copy(tree: Path) -> None:
    """Copies the files from which a release is built."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in COPIED_PATHS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=ignore)
        else:
            tree.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)


def apply(patch: Patch, tree: Path) -> None:
    """Applies the patch to a copy. Raises OutdatedPatch."""
    file = tree / patch.file
    text = file.read_text()
    if text.count(patch.before) != 1:
        raise OutdatedPatch(f"{patch.before!r} occurs {text.count(patch.before)} times in {patch.file}, not once")
    file.write_text(text.replace(patch.before, patch.after))


def _label(project: Path, kind: Kind) -> str:
    """Gives the copy its own version number, and returns that number."""
    text = project.read_text()
    found = re.search(r'^version = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise OutdatedPatch("pyproject.toml has no line with the version")
    version = f"{found[1]}+{kind}"
    project.write_text(text.replace(found[0], f'version = "{version}"'))
    return version
