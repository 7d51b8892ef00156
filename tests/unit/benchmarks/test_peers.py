"""Tests what the peer P5 commits, and the environment of the peer P4."""

from __future__ import annotations

import re

import pytest

from tests.kit.paths import ROOT

# P4 needs protobuf 5, so these packages are older than ours.
OLDER = {"google-api-core", "googleapis-common-protos", "proto-plus", "protobuf"}
PIN = re.compile(r"^([A-Za-z0-9_.-]+)==(\S+)$", re.MULTILINE)


def pins(name: str) -> dict[str, str]:
    """Maps each package that a requirements file pins to the pinned version."""
    return {
        package.lower().replace("_", "-"): version for package, version in PIN.findall((ROOT / name).read_text())
    }


def test_the_environment_of_p4_differs_only_where_it_must() -> None:
    """Except for OLDER, every package that P4 shares with our system has the same version, including the client
    that uploads.
    """
    ours, theirs = pins("constraints.txt"), pins("benchmarks/streams-requirements.txt")

    different = {name for name, version in theirs.items() if ours.get(name, version) != version}

    assert different == OLDER
    assert {"google-cloud-storage", "msgspec", "sentry-streams"} <= theirs.keys()


@pytest.mark.parametrize(
    ("stored", "committed"),
    [(set(), 3), ({3, 4}, 5), ({4, 5}, 3), (set(range(3, 40)), 40), ({3, 4, 5, 7, 8, 9}, 6)],
)
def test_p5_commits_up_to_the_first_offset_that_is_not_stored(stored: set[int], committed: int) -> None:
    """P5 commits up to the first offset whose bit, in the bit order of Redis, is not set."""
    pytest.importorskip("fastjsonschema")
    from benchmarks.peers_celery import Progress

    marks = bytearray(8)
    for offset in stored:
        marks[offset // 8] |= 0x80 >> offset % 8
    found = Progress(committed=3, published=40)

    assert found.advance(bytes(marks[found.committed // 8 :]), 0) == committed - 3
    assert found.committed == committed


def test_p5_commits_nothing_that_it_has_not_published() -> None:
    """Bits that an earlier owner of the partition has set in the bitmap do not move the committed offset beyond
    the published messages.
    """
    pytest.importorskip("fastjsonschema")
    from benchmarks.peers_celery import Progress

    found = Progress(committed=0, published=3)

    assert found.advance(b"\xff\xff", 0) == 3
