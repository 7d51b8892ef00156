"""The comparison finds missing, unexpected and different items, and merges the entries of a manifest by
identity.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from ingest.local.compare.checks import compare_facts, compare_maps, compare_metrics, compare_sets
from ingest.local.load.expectation import Expectation, Flags, Total
from ingest.local.load.manifest import Click, Entry, Header, ManifestError, Writer, read_entries, read_header
from ingest.local.load.produce import PROFILES, stream


def segment(offset: int = 0, **changes: object) -> Entry:
    """Returns an entry as the generator writes it."""
    entry = Entry(
        kind="segment",
        topic="t",
        partition=0,
        offset=offset,
        project_id=11,
        replay_id="a" * 32,
        segment_id=0,
        blob="30/11/a/0",
        blob_sha256="00",
        seen={"replay_event": 1},
        sums={"raw": 10, "stored": 5},
    )
    return msgspec.structs.replace(entry, **changes)


def test_a_message_that_was_sent_twice_is_expected_once():
    """If a message was sent twice, one object, one row and one outcome are expected, and both offsets must be
    committed.
    """
    expected = Expectation()
    expected.add_all([segment(0), segment(1, duplicate=True)])

    assert len(expected.objects) == len(expected.segments) == len(expected.outcomes) == 1
    assert expected.ends == {("t", 0): 2}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_most_severe_click_wins_in_any_order(order: tuple[int, int]):
    """If segments arrive out of order, the most severe form of a click is expected: a dead click stays dead."""
    click, dead = Click("hash", 7, 0, 0), Click("hash", 7, 1, 0)
    entries = [segment(0, segment_id=0, clicks=(click,)), segment(1, segment_id=2, clicks=(dead,))]

    expected = Expectation()
    expected.add_all([entries[at] for at in order])

    assert {(11, "hash"): Flags(1, 0)} == expected.clicks


def test_a_rejected_message_is_expected_as_a_dead_letter_only():
    """For a rejected message, only a dead letter is expected: no object, no row and no outcome."""
    expected = Expectation()
    expected.add(Entry(kind="reject", topic="t", partition=2, offset=5, reason="schema", blob_sha256="ff"))

    assert expected.letters == {("t", 2, 5): ("schema", "ff")}
    assert not expected.objects
    assert not expected.segments


def test_a_comparison_separates_missing_unexpected_and_different():
    """Missing, unexpected and different items are counted separately and listed in the examples."""
    check = compare_maps("things", {"a": 1, "b": 2, "c": 3}, {"b": 2, "c": 4, "d": 5})

    assert (check.missing, check.extra, check.wrong) == (1, 1, 1)
    assert not check.ok
    assert check.examples == ("missing: a", "unexpected: d", "c: 4 instead of 3")


def test_extra_items_can_be_allowed():
    """If extra items are allowed, a sink may also contain the items of another load."""
    assert compare_sets("things", {1}, {1, 2}, extra_is_error=False).ok
    assert not compare_sets("things", {1}, {1, 2}).ok


def test_facts_are_compared_by_event_type():
    """Extra facts of one type do not compensate for missing facts of another."""
    expected = {"ui.click": 3, "memory": 1}

    assert compare_facts(expected, {"ui.click": 3, "memory": 1}).ok
    check = compare_facts(expected, {"ui.click": 2, "memory": 2})
    assert (check.missing, check.extra) == (1, 1)
    assert compare_facts(expected, {"ui.click": 3, "memory": 1, "invented": 1}).extra == 1


def test_metrics_may_repeat_after_a_crash_but_never_fall_short():
    """After a crash, metrics may exceed the expected counts because of redelivery, but never fall short."""
    expected = {"size": Total(2, 10.0)}

    assert compare_metrics(expected, {"size": Total(2, 10.0)}, exact=True).ok
    assert compare_metrics(expected, {"size": Total(3, 15.0)}, exact=False).ok
    assert not compare_metrics(expected, {"size": Total(3, 15.0)}, exact=True).ok
    assert not compare_metrics(expected, {"size": Total(1, 5.0)}, exact=False).ok
    assert not compare_metrics(expected, {"size": Total(2, 11.0)}, exact=False).ok


def test_a_missing_metric_is_named_even_if_its_sum_is_not_known():
    """A missing metric is reported even if its expected sum is unknown (some sums depend on the compression)."""
    found = compare_metrics({"size": Total(3, None)}, {"size": Total(1, 5.0)}, exact=False)

    assert (found.missing, found.examples) == (2, ("size: 1 values (sum 5) instead of 3 values",))


def test_a_manifest_reads_back_as_it_was_written(tmp_path: Path):
    """A manifest with a header and entries of every kind reads back as it was written."""
    path, header = tmp_path / "manifest.jsonl", Header("t", "small", 1, 50, 0)
    entries = [message.entry for message in stream(PROFILES["small"], 50, 1, 1_790_000_000)]
    with Writer(path, header) as writer:
        for entry in entries:
            writer.write(entry)

    assert header == read_header(path)
    assert entries == list(read_entries(path))


def test_a_truncated_manifest_is_reported_with_its_position(tmp_path: Path):
    """A manifest that ends in the middle of a line, as after a kill, is reported with the position."""
    path = tmp_path / "manifest.jsonl"
    with Writer(path, Header("t", "small", 1, 1, 0)) as writer:
        writer.write(segment())
    path.write_bytes(path.read_bytes()[:-10])

    with pytest.raises(ManifestError, match="line 2"):
        list(read_entries(path))
