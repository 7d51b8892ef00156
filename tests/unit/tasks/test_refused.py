"""A refused item is dead-lettered and can be restored unchanged."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from tasks.kafka.letters import REFUSED, Label, Origin, Refusal, decode
from tasks.refused import dead_letter, revive
from tasks.wire import Blob, DeadLetter, Item, Manifest, Metric, Row

MANIFEST = Manifest("recordings-3-10-20", "digest", "recordings", 3, 10, 20, "reader", 1, ())
REPLAY = "0123456789abcdef0123456789abcdef"
METRIC = msgspec.json.encode(Metric("d", "size", 2.5, ()))


def label_of(letter: DeadLetter) -> Label:
    label = decode(letter.headers)
    assert label is not None
    return label


def forged(sink: str, kind: str, item: str) -> Label:
    """Returns headers that an attacker with write access to the topic may put into a letter."""
    return Label(
        REFUSED, "no", Origin("recordings", 3, 12), "recordings-3-10-20", refusal=Refusal(sink, kind, item)
    )


@pytest.mark.parametrize(
    ("sink", "item"),
    [
        ("clickhouse", Row("replays", "a/b/c", b'{"n": 1}', 12)),
        ("bigquery", Row("replay_events", "abc-0--1-rrweb_event_count", b'{"n": 1}', 12)),
        ("gcs", Blob(f"30/2/{REPLAY}/0", b"\x00\xff", 13)),
        ("gcs", Blob(f"30/packed/recordings-3-10-20/0-{REPLAY}", b"\x00\xff", 13)),
        ("datadog", Metric("d", "size", 2.5, ("a:b",))),
    ],
)
def test_a_refused_item_can_be_written_again(sink: str, item: Item) -> None:
    """A refused item can be written again: `revive` rebuilds the item from the letter's value and headers."""
    letter = dead_letter(item, MANIFEST, sink, "Cannot\nparse")

    label = label_of(letter)

    assert revive(label, bytes(letter.value)) == (sink, item)
    assert (label.reason, label.error) == ("sink_refused", "Cannot parse")
    assert (label.origin.topic, label.origin.partition) == ("recordings", 3)
    assert label.batch_id == "recordings-3-10-20"


def test_the_same_refusal_is_the_same_letter() -> None:
    """A letter contains no random values and no current time, so a repeated batch repeats its letters byte for
    byte.
    """
    item = Row("replays", "x", b"{}", 11)

    assert dead_letter(item, MANIFEST, "bigquery", "no") == dead_letter(item, MANIFEST, "bigquery", "no")


def test_a_kept_message_cannot_be_revived() -> None:
    """A letter that contains a message instead of a refused item cannot be converted to an item, and the error
    shows the reason why the message was rejected.
    """
    with pytest.raises(ValueError, match="bad_header"):
        revive(replace(forged("gcs", "blob", "x"), reason="bad_header", refusal=None), b"")


@pytest.mark.parametrize(
    ("sink", "kind", "item", "value"),
    [
        ("gcs", "row", f"30/2/{REPLAY}/0", b"{}"),
        ("gcs", "blob", f"../2/{REPLAY}/0", b""),
        ("gcs", "blob", f"30/2/{REPLAY}/0/more", b""),
        ("gcs", "blob", f"30/2/{REPLAY}/0\n", b""),
        ("gcs", "blob", f"30/packed/recordings-0-0-9/0-{REPLAY}", b""),
        ("clickhouse", "row", "secret SELECT concat(user, password) FROM replay_segments --/1", b"{}"),
        ("clickhouse", "row", "replay_summaries/1", b"{}"),
        ("clickhouse", "row", "replay_events/1", b"{}"),
        ("clickhouse", "row", "replays/", b"{}"),
        ("clickhouse", "row", "replays/1", b"{}\n{}"),
        ("clickhouse", "row", "replays/1", b"[]"),
        ("clickhouse", "row", "replays/1", b"\xff"),
        ("bigquery", "row", "replays/1", b"{}"),
        ("datadog", "metric", "other", METRIC),
        ("datadog", "metric", "size", b"{}"),
        ("dead_letter", "row", "replays/1", b"{}"),
        ("/etc/passwd", "row", "replays/1", b"{}"),
        ("", "", "", b""),
    ],
)
def test_a_letter_may_name_only_known_sinks_and_tables(sink: str, kind: str, item: str, value: bytes) -> None:
    """A letter may name only sinks, kinds and tables that we use; anything else is refused before a sink
    receives it.
    """
    with pytest.raises(ValueError, match=r"\w"):
        revive(forged(sink, kind, item), value)
