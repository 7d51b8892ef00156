"""Tests that an audit, which compares object names in ClickHouse with a listing of the bucket, finds every missing
object.
"""

from __future__ import annotations

import pytest

from ingest.operate.retention import Audit
from ingest.operate.retention.audit import SUSPECTS_MAX, MissingObjects, ReferencedNames
from ingest.operate.retention.bucket import DAY_SECONDS, StoredObject


def missing(
    listed: list[str],
    segments: list[str],
    indexed: list[str] | None = None,
    packed: list[tuple[str, int]] | None = None,
    appeared: frozenset[str] = frozenset(),
) -> Audit:
    """Returns the result of an audit of the given names.

    `appeared`: objects that were written after the listing.
    """
    found = Audit("bucket", 0.0)
    pointing = ReferencedNames(iter(segments), iter(indexed or []), iter(packed or []))
    follower = MissingObjects(found, pointing, lambda names: [name for name in names if name not in appeared])
    for name in listed:
        follower.listed(name)
    follower.ended()
    return found


def named(found: Audit) -> list[tuple[str, int]]:
    return [(example.object, example.segments) for example in found.examples]


def test_a_row_without_its_object_is_found_at_any_position() -> None:
    """A missing name is found before, between and after the listed names; a duplicate counts once."""
    found = missing(["b", "d"], ["a", "a", "b", "b", "c", "d", "e"])

    assert named(found) == [("a", 1), ("c", 1), ("e", 1)]
    assert (found.rows, found.rows_without_object) == (5, 3)


def test_a_segment_of_a_packed_object_needs_only_that_object() -> None:
    """If a packed object is missing, its three segments are missing.

    A segment that has neither an object nor an index row is also reported as missing.
    """
    found = missing(["30/packed/x"], ["a", "b", "c"], ["a", "b"], [("30/packed/w", 3), ("30/packed/x", 1)])

    assert sorted(named(found)) == [("30/packed/w", 3), ("c", 1)]


def test_objects_written_after_the_listing_are_not_missing() -> None:
    found = missing([], ["a", "b"], appeared=frozenset(("a",)))

    assert named(found) == [("b", 1)]


def test_many_missing_objects_are_counted_and_some_are_named() -> None:
    """If the bucket is empty, all objects of the table are counted as missing, and some of them are named."""
    count = 2 * SUSPECTS_MAX + 5

    found = missing([], [f"{number:06}" for number in range(count)])

    assert found.rows_without_object == count
    assert len(found.examples) == 1000


@pytest.mark.parametrize(
    ("name", "days", "overdue"),
    [("30/1/x/0", 30, 2.0), ("90/packed/b/0-d", 90, -58.0), ("0/1/x/0", None, 0.0), ("logs/30/x", None, 0.0)],
)
def test_the_retention_is_in_the_name(name: str, days: int | None, overdue: float) -> None:
    stored = StoredObject(name, 1, 1000.0, live=True)

    assert stored.retention_days == days
    assert stored.overdue_days(1000.0 + 32 * DAY_SECONDS) == overdue
