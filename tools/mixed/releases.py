"""Finds the previous release: the newest tag or, in clones without tags, the newest entry of
`tools/releases.toml`.
"""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).parents[2]
RECORD = Path("tools/releases.toml")
GIT_SECONDS_MAX = 60


class NoRelease(Exception):
    """Raised if there is no earlier release in this checkout. The message states the reason and what to do."""


@dataclass(frozen=True, slots=True)
class ReleaseCommit:
    """A release and its commit."""

    version: Version
    commit: str


def git(root: Path, *arguments: str) -> str | None:
    """Returns the output of git in the checkout, or None if git failed or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS_MAX,
            check=False,
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def recorded(root: Path = ROOT) -> list[ReleaseCommit]:
    """Returns the releases in `tools/releases.toml`."""
    found = tomllib.loads((root / RECORD).read_text())["releases"]
    return [ReleaseCommit(Version(version), commit) for version, commit in found.items()]


def tagged(root: Path = ROOT) -> list[ReleaseCommit]:
    """Returns the releases with a tag `v<version>` in this clone."""
    return list(_tagged(root))


def _tagged(root: Path) -> Iterator[ReleaseCommit]:
    for tag in (git(root, "tag", "--list", "v*") or "").split():
        commit = git(root, "rev-parse", f"{tag}^{{commit}}")
        try:
            version = Version(tag.removeprefix("v"))
        except InvalidVersion:
            continue
        if commit:
            yield ReleaseCommit(version, commit)


def previous(root: Path = ROOT) -> ReleaseCommit:
    """Returns the newest release before the checked-out commit. Raises NoRelease."""
    head = git(root, "rev-parse", "HEAD")
    if head is None:
        raise NoRelease(
            f"{root} is not a git checkout, so there is no earlier release to build: clone the repository"
        )
    known = {*tagged(root), *recorded(root)}
    others = (release for release in known if release.commit != head)
    earlier = sorted(others, key=lambda release: release.version, reverse=True)
    for release in earlier:
        if git(root, "merge-base", "--is-ancestor", release.commit, head) is not None:
            return release
    if not earlier:
        raise NoRelease("no release is tagged or recorded in tools/releases.toml before this commit")
    names = ", ".join(f"{release.version} ({release.commit[:8]})" for release in earlier)
    raise NoRelease(
        f"this clone does not contain the commit of an earlier release: {names}. Run git fetch --unshallow"
    )
