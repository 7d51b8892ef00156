"""Every patch for a planted release still applies to the code, and a planted release uses the installed
libraries.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools.mixed.build import Release, other_pins
from tools.mixed.planted import MIGRATIONS, PATCHES, Kind, OutdatedPatch, Patch, apply, copy, planted

SCRIPT = """
import celery, ingest, tasks.wire as wire
from ingest.core import cut_record
from tasks.migrate.clickhouse import migrations
from tasks.release import RELEASE
print(RELEASE, wire.VERSION, cut_record.VERSION, migrations()[-1].name[5:], ingest.__file__, sep="\\n")
"""


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.NEWER])
def test_every_patch_fits_the_present_code(kind: Kind, tmp_path: Path):
    """Each text that a patch replaces occurs exactly once in the code."""
    copy(tmp_path)

    for patch in PATCHES[kind]:
        apply(patch, tmp_path)


def test_a_patch_that_no_longer_fits_is_reported(tmp_path: Path):
    """A patch that no longer applies causes an error that names it, instead of being skipped."""
    (tmp_path / "module.py").write_text("x = 2\n")

    with pytest.raises(OutdatedPatch, match=r"'x = 1' occurs 0 times in module\.py"):
        apply(Patch("module.py", "x = 1", "x = 2"), tmp_path)


def test_a_planted_release_runs_its_own_code_with_the_libraries_of_this_one(tmp_path: Path):
    """A planted release has its own version, formats and schema, but uses the libraries installed for the current
    code.
    """
    made: Release = planted(Kind.NEWER, tmp_path)

    installation = made.installation
    printed = subprocess.run(
        [installation.python, "-c", SCRIPT], cwd=installation.folder, capture_output=True, text=True, check=True
    ).stdout.splitlines()

    assert printed[:4] == [made.version, "2", "3", "planted"]
    assert made.version.endswith("+newer")
    assert Path(printed[4]).is_relative_to(tmp_path)
    assert (tmp_path / "newer-tree" / MIGRATIONS).is_dir()


def test_only_libraries_with_other_pins_are_installed_again():
    """For another release, only libraries that are missing or pinned to a different version are installed."""
    ours = "celery==5.6.3\nnew==1 # added\n\n# a comment\nredis==7.0"

    assert other_pins("celery==5.6.3\nredis==6.4\ngone==1.0", ours) == ["gone==1.0", "redis==6.4"]
