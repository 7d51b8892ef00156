"""A letter's headers describe it, and no header of a producer is mistaken for one of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.kafka.letters import (
    ABANDONED,
    NAMES,
    REFUSED,
    REPLAYED_FROM,
    Label,
    Mark,
    Origin,
    Refusal,
    SealStatus,
    decode,
    decode_mark,
    digest,
    examine,
    sealed,
)
from tasks.kafka.records import Headers
from tasks.seals import UNSEALED, Seals

ORIGIN = Origin("recordings", 3, 12)
FORGED: Headers = (
    ("sink", b"gcs"),
    ("kind", b"blob"),
    ("item", b"30/777/0123456789abcdef0123456789abcdef/0"),
    ("replayed", b"0-0"),
    ("version", b"2"),
    ("originals", b"\x90"),
    (REPLAYED_FROM, b"recordings-dlq-0-0"),
)
HEADERS = st.lists(
    st.tuples(st.sampled_from(sorted(NAMES)) | st.text(max_size=20), st.none() | st.binary(max_size=50)),
    max_size=30,
)


def message(originals: Headers, reason: str = "not_msgpack") -> Label:
    return Label(reason, "why", ORIGIN, "recordings-3-10-20", first_seen_ms=5, originals=originals)


def first_format(originals: Headers) -> Headers:
    """Returns a letter in the format of the first release: the message's headers at the top level, followed by
    seven of our headers.
    """
    ours = {
        "reason": "not_msgpack",
        "error": "why",
        "topic": "recordings",
        "partition": "3",
        "offset": "12",
        "batch_id": "recordings-3-10-20",
        "first_seen": "5",
    }
    kept = tuple(pair for pair in originals if pair[0] not in ours)
    return kept + tuple((name, text.encode()) for name, text in ours.items())


@given(HEADERS)
def test_a_message_keeps_its_own_headers(originals: list[tuple[str, bytes | None]]) -> None:
    """A message's own headers are kept separately from the headers that we add, and keep their order and duplicate
    names.
    """
    label = message(tuple(originals))

    encoded = label.encode()

    assert decode(encoded) == label
    assert len({name for name, _ in encoded}) == len(encoded)
    assert NAMES.issuperset(name for name, _ in encoded)


@pytest.mark.parametrize("reason", ["not_msgpack", ABANDONED])
def test_a_kept_message_is_never_mistaken_for_a_refused_item(reason: str) -> None:
    """A kept message is not mistaken for a refused item, even if its producer sent headers that look like ours."""
    label = decode(message(FORGED, reason).encode())

    assert label == message(FORGED, reason)
    assert label.refusal is None


def test_a_letter_of_the_first_format_is_not_mistaken_either() -> None:
    """In a dead letter in the first format, forged headers appear beside the headers that we added, but the reason
    is read from our header.
    """
    label = decode(first_format(FORGED))

    assert label == message(FORGED)


@given(HEADERS)
def test_our_headers_win_in_the_first_format_too(originals: list[tuple[str, bytes | None]]) -> None:
    """In the first format, the origin and the reason are those that we wrote, whatever headers the producer
    sent.
    """
    label = decode(first_format(tuple(originals)))

    assert label is not None
    assert (label.reason, label.origin, label.refusal) == ("not_msgpack", ORIGIN, None)


@pytest.mark.parametrize("packed", [b"", b"\xc1", b"\x91\xc4\x01a", b"\x92\xc0\xc0", b"\x92\x01\x02", b"x" * 100])
def test_malformed_originals_are_ignored(packed: bytes) -> None:
    """A record that does not fully match the second format is read as a letter of the first format, without an
    exception.
    """
    headers = (*message(()).encode(), ("originals", packed))

    label = decode(headers)

    assert label is not None
    assert label.refusal is None
    assert label.origin == ORIGIN


def test_a_refused_item_carries_no_message() -> None:
    """The letter of a refused item contains no message, and its headers are the same in both formats except for
    the version.
    """
    label = Label(REFUSED, "no", ORIGIN, "recordings-3-10-20", refusal=Refusal("gcs", "blob", "30/1/a/0"))

    assert decode(label.encode()) == label
    assert decode(tuple(pair for pair in label.encode() if pair[0] != "version")) == label


def test_a_record_without_a_reason_is_no_letter() -> None:
    assert decode(()) is None
    assert decode((("reason", None),)) is None
    assert decode((("sink", b"gcs"), ("item", b"30/1/a/0"))) is None


@pytest.mark.parametrize("number", [b"", b"x", b"-1", b"1.0", "١".encode(), b"9" * 30, None])
def test_a_position_that_is_not_a_number_is_none(number: bytes | None) -> None:
    """A partition or offset that is not a number is read as -1, because the topic may contain records from other
    producers.
    """
    label = decode((("reason", b"r"), ("topic", b"t"), ("partition", number), ("offset", number)))

    assert label is not None
    assert label.origin == Origin("t", -1, -1)


def test_only_a_record_without_key_and_value_is_a_mark() -> None:
    """Only a record with neither a key nor a value is a mark, because letters and kept messages may also have a
    mark's header.
    """
    mark = Mark("3-12", digest(b"k", b"v"))

    assert decode_mark(mark.encode(), None, b"") == mark
    assert decode_mark((("replayed", b"3-12"),), None, b"") == Mark("3-12")
    assert decode_mark(message((("replayed", b"3-12"),)).encode(), None, b"") is None
    assert decode_mark(first_format((("replayed", b"3-12"),)), None, b"") is None
    assert decode_mark(mark.encode(), None, b"value") is None
    assert decode_mark(mark.encode(), b"key", b"") is None
    assert decode_mark((*mark.encode(), *mark.encode()), None, b"") is None


def test_a_digest_distinguishes_key_and_value() -> None:
    digests = {
        digest(b"a", b"bc"),
        digest(b"ab", b"c"),
        digest(None, b"abc"),
        digest(b"", b"abc"),
        digest(b"abc", b""),
    }
    assert len(digests) == 5


SEALS = Seals((b"a-key-of-this-test-" * 2,))
RECORD = (b"k", b"value", Label("not_msgpack", "why", ORIGIN, "b", 5, (("trace", b"1"),)).encode())


def test_a_sealed_letter_is_read_like_an_unsealed_one():
    """A sealed letter is read like an unsealed letter, and holders of the key can verify it."""
    headers = sealed(SEALS, "dlq", *RECORD)

    assert decode(headers) == decode(RECORD[2])
    assert examine(SEALS, "dlq", *RECORD[:2], headers) is SealStatus.YES
    assert examine(UNSEALED, "dlq", *RECORD[:2], headers) is SealStatus.UNKNOWN
    assert sealed(UNSEALED, "dlq", *RECORD) == RECORD[2]
    assert examine(SEALS, "dlq", *RECORD) is SealStatus.NO


@pytest.mark.parametrize(
    "forge",
    [
        lambda key, value, headers: ("dlq", key, b"other", headers),
        lambda key, value, headers: ("dlq", None, value, headers),
        lambda key, value, headers: ("dlq", b"", key + value, headers),
        lambda key, value, headers: ("other-dlq", key, value, headers),
        lambda key, value, headers: ("dlq", key, value, headers[1:]),
        lambda key, value, headers: ("dlq", key, value, (*headers, ("sink", b"gcs"))),
        lambda key, value, headers: ("dlq", key, value, (*headers, headers[-1])),
        lambda key, value, headers: ("dlq", key, value, (*headers[:-1], ("seal", None))),
    ],
)
def test_a_changed_letter_fails_verification(forge: Any):
    """A letter fails verification if its topic, key, value or a header was changed, or if it has two seals."""
    topic, key, value, headers = forge(*RECORD[:2], sealed(SEALS, "dlq", *RECORD))

    assert examine(SEALS, topic, key, value, headers) is SealStatus.NO


def test_a_sealed_mark_is_a_mark():
    mark = Mark("0-5", "digest")

    assert decode_mark(sealed(SEALS, "dlq", None, b"", mark.encode()), None, b"") == mark
