"""A refused item goes to the dead letters and comes back as it was."""

from __future__ import annotations

import pytest

from tasks.refused import dead_letter, revive
from tasks.wire import Blob, Item, Manifest, Metric, Row

MANIFEST = Manifest("recordings-3-10-20", "digest", "recordings", 3, 10, 20, "reader", 1, ())


@pytest.mark.parametrize(
    ("sink", "item"),
    [
        ("clickhouse", Row("replays", "a/b/c", b'{"n": 1}', 12)),
        ("gcs", Blob("30/2/abc/0", b"\x00\xff", 13)),
        ("datadog", Metric("d", "size", 2.5, ("a:b",))),
    ],
)
def test_a_refused_item_can_be_written_again(sink: str, item: Item) -> None:
    """`revive` makes the same item of the letter's value and headers."""
    letter = dead_letter(item, MANIFEST, sink, "Cannot\nparse")

    headers = dict(letter.headers)

    assert revive(sink, bytes(letter.value), headers) == item
    assert headers["reason"] == b"sink_refused"
    assert headers["error"] == b"Cannot parse"
    assert (headers["topic"], headers["partition"]) == (b"recordings", b"3")
    assert headers["batch_id"] == b"recordings-3-10-20"


def test_the_same_refusal_is_the_same_letter() -> None:
    """Nothing random and nothing of the clock: a repeated batch repeats its letters, byte for byte."""
    item = Row("replays", "x", b"{}", 11)

    assert dead_letter(item, MANIFEST, "bigquery", "no") == dead_letter(item, MANIFEST, "bigquery", "no")


def test_another_letter_is_not_an_item() -> None:
    """A reject has no kind; whoever asks is told what was there."""
    with pytest.raises(ValueError, match="not an item"):
        revive("gcs", b"", {"reason": b"bad_header", "offset": b"4"})
