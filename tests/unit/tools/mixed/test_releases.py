"""The previous release is found through the Git tags or, if there are none, in `tools/releases.toml`.

If neither the tags nor `tools/releases.toml` names a previous release, the reason is reported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.paths import ROOT
from tools.mixed.releases import RECORD, NoRelease, git, previous, recorded, tagged


class Repository:
    """A small git repository with a record of releases."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.git("init", "--quiet", "--initial-branch", "main")
        self.record()

    def git(self, *arguments: str) -> str:
        """Runs git, and returns its output."""
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.com")
        result = subprocess.run(
            ["git", "-C", str(self.root), *identity, *arguments], capture_output=True, text=True, check=True
        )
        return result.stdout.strip()

    def commit(self, tag: str = "") -> str:
        """Makes a commit, and a tag if one is given."""
        self.git("commit", "--quiet", "--allow-empty", "-m", tag or "one more")
        if tag:
            self.git("tag", "-a", tag, "-m", tag)
        return self.git("rev-parse", "HEAD")

    def record(self, **commits: str) -> None:
        """Writes the record. A name such as v1_0 stands for version 1.0."""
        lines = [f'"{name[1:].replace("_", ".")}" = "{commit}"' for name, commit in commits.items()]
        (self.root / RECORD).parent.mkdir(exist_ok=True)
        (self.root / RECORD).write_text("\n".join(["[releases]", *lines]))

    def previous(self) -> str:
        """Returns the version of the previous release."""
        return str(previous(self.root).version)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository without commits."""
    return Repository(tmp_path)


def test_tags_and_the_record_name_the_same_commits():
    """Every release tag in this clone is listed in `tools/releases.toml`, with the same commit."""
    tags = {release.version: release.commit for release in tagged(ROOT)}
    if not tags:
        pytest.skip("this clone has no tags")

    record = {release.version: release.commit for release in recorded(ROOT)}

    assert tags.items() <= record.items()


def test_every_recorded_release_has_a_section_of_the_changelog():
    """Every recorded release has a section in the changelog with its date."""
    changelog = (ROOT / "CHANGELOG.md").read_text()

    assert [release for release in recorded(ROOT) if f"\n## {release.version} (2" not in changelog] == []


def test_the_newest_tag_below_the_commit_is_the_previous_release(repository: Repository):
    """The previous release is the newest tag on an ancestor of the commit.

    Tags on the commit itself and on other branches are ignored. Tags are compared by version, not as strings.
    """
    repository.commit("v0.9.0")
    repository.commit("v0.10.0")
    repository.commit("vexing")
    repository.git("checkout", "--quiet", "-b", "side")
    repository.commit("v3.0.0")
    repository.git("checkout", "--quiet", "main")
    repository.commit("v0.11.0")

    assert repository.previous() == "0.10.0"
    repository.commit()
    assert repository.previous() == "0.11.0"


def test_without_tags_the_record_names_it(repository: Repository):
    first, second = repository.commit(), repository.commit()
    repository.commit()
    repository.record(v1_0=first, v1_1=second)

    assert repository.previous() == "1.1"


def test_a_clone_without_that_commit_is_reported(repository: Repository):
    """If a shallow clone lacks a recorded commit, the reason names the commit and the command that fetches it."""
    repository.commit()
    repository.record(v1_0="d612bc7afd11d1545762359304c5bcf2d91737c3")

    with pytest.raises(NoRelease, match=r"1\.0 \(d612bc7a\)\. Run git fetch --unshallow"):
        repository.previous()


def test_the_first_release_has_no_previous_one(repository: Repository):
    repository.commit("v0.1.0")

    with pytest.raises(NoRelease, match="before this commit"):
        repository.previous()


def test_a_copy_without_git_is_reported(tmp_path: Path):
    with pytest.raises(NoRelease, match="not a git checkout"):
        previous(tmp_path)


def test_a_shallow_clone_skips_the_suite_with_the_reason(tmp_path: Path):
    """In a clone that has only the last commit, the suite is skipped with a reason."""
    if git(ROOT, "rev-parse", "HEAD") is None:
        pytest.skip("the sources are no checkout")
    clone = ["git", "clone", "--quiet", "--depth", "1", "--no-tags", f"file://{ROOT}", str(tmp_path)]
    subprocess.run(clone, check=True)
    environment = {name: value for name, value in os.environ.items() if name != "CI"}

    result = subprocess.run(
        [sys.executable, "-m", "tools.mixed"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )

    assert result.returncode == 0
    assert result.stderr.startswith("skipped: this clone does not contain the commit of an earlier release: 0.")
