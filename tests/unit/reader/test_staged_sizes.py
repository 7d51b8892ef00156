"""The counted size of a batch covers both its staged bytes and the memory that it holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from ingest.core.limits import Limits
from ingest.core.model import Message, Reject, Segment
from ingest.core.parse import ParseRules, parse
from ingest.reader.encoding import Encoder
from ingest.testing import messages as make
from ingest.testing.runtime import PARTITION
from tasks.units import KiB, MiB
from tasks.wire import SinkName
from tests.kit.core_reader import Reader

RULES = ParseRules(sample_segment_rate=1.0, sample_event_rate=1.0)
GARBAGE_BYTES = bytes(range(256)) * 40
HEADERS = tuple((f"name-{number}", GARBAGE_BYTES[:100]) for number in range(300))
SHAPES = {
    "small": Message(PARTITION, 1, 0, make.recording()),
    "many clicks": Message(PARTITION, 1, 0, make.recording([make.rage_click_event(n) for n in range(300)])),
    "many facts": Message(PARTITION, 1, 0, make.recording([make.hydration_error_event()] * 5000)),
    "escaped twice": Message(PARTITION, 1, 0, make.recording([make.breadcrumb("x", {"m": '"\\' * 5000})] * 50)),
    "a video": Message(PARTITION, 1, 0, make.video_recording(GARBAGE_BYTES * 20)),
    "plain": Message(PARTITION, 1, 0, make.recording([make.mutation_event(3000)], compressed=False)),
    "garbage": Message(PARTITION, 1, 0, GARBAGE_BYTES),
    "headers": Message(PARTITION, 1, 0, GARBAGE_BYTES, GARBAGE_BYTES, HEADERS),
    "long error": Message(PARTITION, 1, 0, make.recording(project_id="\N{SNOWMAN}" * 5000)),
}


@pytest.mark.parametrize("api", ["insert_all", "storage"])
@pytest.mark.parametrize("layout", ["packed", "objects"])
@pytest.mark.parametrize("name", SHAPES)
def test_no_more_is_staged_than_was_counted(name: str, layout: str, api: Literal["insert_all", "storage"]) -> None:
    """Redis receives no more bytes, framing included, than the counted size of the batch, except for a packed
    object's index.
    """
    runtime = Reader(Limits(batch_messages_max=1))
    runtime.assign(PARTITION)
    runtime.parsed(parse(SHAPES[name], replace(RULES, bigquery_write=api)))
    (dispatch,) = runtime.dispatches()

    encoder = Encoder(tuple(SinkName), 8, "reader", packed=layout == "packed")
    staged = sum(map(len, encoder.encode(dispatch.batch).payloads.values()))

    assert staged <= dispatch.batch.size_bytes + (512 if layout == "packed" else 0)


@pytest.mark.parametrize("padding", ["unread", "replay_event"])
def test_a_small_recording_does_not_keep_a_long_message_in_memory(padding: str) -> None:
    """The blob of a small recording is copied, because a memoryview would keep the whole message in memory without
    counting it towards any limit.
    """
    long = bytes(1 * MiB)
    value = make.recording([make.mutation_event()], **{padding: long})

    outcome = parse(Message(PARTITION, 1, 0, value), RULES)

    assert isinstance(outcome, Segment)
    assert outcome.size_bytes < 64 * KiB
    assert not isinstance(outcome.blobs[0].content, memoryview)


def test_a_large_recording_is_not_copied() -> None:
    """A blob that makes up most of its message is not copied, because a copy would save little memory."""
    value = make.recording([make.mutation_event()], replay_event=b"{}") + b""
    outcome = parse(Message(PARTITION, 1, 0, value), RULES)

    assert isinstance(outcome, Segment)
    assert isinstance(outcome.blobs[0].content, memoryview)


def test_a_reject_counts_its_whole_record() -> None:
    """The size of a reject includes value, key and headers, which are kept until its dead letter is durable."""
    outcome = parse(SHAPES["headers"], RULES)

    assert isinstance(outcome, Reject)
    assert outcome.size_bytes >= 2 * len(GARBAGE_BYTES) + 300 * 100
