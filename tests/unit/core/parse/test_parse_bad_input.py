"""Bad input becomes a reject with a stable reason and the original bytes, or a segment without the invalid
part."""

from __future__ import annotations

import zlib

import pytest

from ingest.core.model import Message, Reject
from ingest.core.parse import REASONS, WARNINGS, ParseRules, parse
from ingest.testing.messages import (
    LEFT_OUT,
    MALFORMED_EVENTS,
    REJECTED,
    body,
    click_event,
    envelope,
    frame,
    recording,
    replay_event,
)
from tests.kit.parsing import ALL, OFFSET, clicks, facts, kinds, message, parsed, rejected, session, table


@pytest.mark.parametrize(("reason", "value"), [case[1:] for case in REJECTED], ids=[case[0] for case in REJECTED])
def test_a_message_that_cannot_be_read_is_rejected_with_a_stable_reason(reason: str, value: bytes):
    """A message that cannot be read is rejected with a stable reason, and its dead letter contains the exact
    bytes.
    """
    reject = rejected(value)

    assert reject.reason == reason
    assert reject.value == value
    assert reject.offset == OFFSET
    assert reject.error


def test_a_dead_letter_keeps_key_headers_and_time():
    """A dead letter keeps the message's key, headers and time, which are needed to replay the letter."""
    made = Message(
        source=message(b"").source,
        epoch=1,
        offset=7,
        value=b"\xc1",
        key=b"k",
        headers=(("h", b"v"), ("n", None)),
        timestamp_ms=5,
    )

    outcome = parse(made, ALL)

    assert isinstance(outcome, Reject)
    assert (outcome.key, outcome.headers, outcome.first_seen_ms) == (b"k", (("h", b"v"), ("n", None)), 5)


def test_the_public_example_is_a_reject_in_spite_of_its_absurd_year():
    """The public example, with the payload `hello` and the receive time 123123123123, is rejected."""
    assert rejected(envelope(b"hello", received=123123123123)).reason == "no_header"


def test_every_reason_is_explained():
    """Every reject reason is explained in a sentence, and has a case in REJECTED unless it is about sizes or a
    failed parser.

    Each explanation ends with a period.
    """
    assert {case[1] for case in REJECTED} == set(REASONS) - {
        "message_too_large",
        "body_too_large",
        "parser_failed",
    }
    assert all(text.endswith(".") for text in (*REASONS.values(), *WARNINGS.values()))


def test_a_message_over_the_limit_is_rejected_unparsed():
    """A message that is one byte above the size limit is rejected without being parsed."""
    value = recording()

    assert parsed(value, ParseRules(message_bytes_max=len(value)))
    assert rejected(value, ParseRules(message_bytes_max=len(value) - 1)).reason == "message_too_large"


@pytest.mark.parametrize("text", [b"[{]", b"{}", b"null", b"", b"[1,", b"[]]", b"[NaN]"])
def test_a_body_that_is_not_a_json_array_is_stored_and_billed_without_events(text: bytes):
    """The stored blob equals the received bytes.

    The rows of the segment and the outcome are written, but no facts.
    """
    stream = zlib.compress(text)

    segment = parsed(envelope(frame(stream)))

    assert segment.warnings == ("recording_not_json",)
    assert bytes(segment.blobs[0].content) == stream
    assert len(table(segment, "replay_segments")) == len(table(segment, "replay_outcomes")) == 1
    assert facts(segment) == []


def test_a_plain_body_that_is_not_json_is_stored_compressed():
    segment = parsed(envelope(frame(b"[{]")))

    assert segment.warnings == ("recording_not_json",)
    assert zlib.decompress(segment.blobs[0].content) == b"[{]"


@pytest.mark.parametrize("event", MALFORMED_EVENTS, ids=range(len(MALFORMED_EVENTS)))
def test_a_malformed_event_affects_no_other_event(event: object):
    """The valid events before and after a malformed event are read and keep their array indexes."""
    segment = parsed(recording([click_event(1), event, click_event(2)]))

    assert [click["click_node_id"] for click in clicks(segment)] == [1, 2]
    assert kinds(segment) == ["ui.click", "ui.click"]
    assert segment.bigquery[-1].id.endswith("-2-ui.click")
    assert segment.warnings == ("event_malformed",)


def test_many_malformed_events_affect_no_valid_event():
    """Each malformed event causes one warning, and every valid event is read."""
    segment = parsed(recording([click_event(1), *MALFORMED_EVENTS, click_event(2)]))

    assert [click["click_node_id"] for click in clicks(segment)] == [1, 2]
    assert segment.warnings == ("event_malformed",) * len(MALFORMED_EVENTS)


@pytest.mark.parametrize("text", [b"{", b"[]", b"null", b"7", b'"text"', b"\xff", b""])
def test_a_replay_event_that_is_not_an_object_loses_only_its_fields(text: bytes):
    """The segment's row is written without the fields of the replay event; the blob and the events are
    unaffected.
    """
    segment = parsed(recording([click_event()], replay_event=text))

    assert "replay_event_not_json" in segment.warnings
    assert "user" not in session(segment)
    assert len(clicks(segment)) == 1
    assert segment.blobs


def test_a_message_without_a_replay_event_gets_a_warning():
    """A segment without a replay event causes a warning and a metric, and its row has no user."""
    segment = parsed(recording(replay_event=None))

    assert segment.warnings == ("replay_event_missing",)
    assert "user" not in session(segment)
    assert "sentry.replays.consumer.recording.missing-replay-event" in {metric.name for metric in segment.metrics}


@pytest.mark.parametrize("flag", [True, False, None, 1, "true", ...])
def test_the_session_row_is_written_whatever_relay_published_itself(flag: object):
    """The row is written whether Relay's flag is true, as in all current Relay versions, or false."""
    segment = parsed(recording(relay_snuba_publish_disabled=flag))

    assert session(segment)["user"] == "u-1"


def test_unknown_keys_are_ignored():
    """Unknown keys are ignored in the envelope, the header and the replay_event."""
    payload = frame(body([]), headers=b'{"segment_id":4,"sequence":"later","more":[{"x":null}]}')

    segment = parsed(envelope(payload, new_thing={"a": [1, b"x"]}, replay_event=replay_event(new_thing=[1])))

    assert segment.segment_id == 4
    assert segment.warnings == ()


@pytest.mark.parametrize(
    ("value", "project_id"),
    [
        (envelope(frame(b"neither zlib nor JSON"), project_id=42), 42),
        (envelope(b"no newline", project_id=42), 42),
        (envelope(LEFT_OUT, project_id=42), 42),
        (envelope(frame(b"x"), project_id=-1), None),
        (envelope(frame(b"x"), project_id=2**63), None),
        (envelope(frame(b"x"), project_id="42"), None),
        (envelope(frame(b"x"), project_id=LEFT_OUT), None),
        (b"garbage", None),
        (b"", None),
    ],
)
def test_a_reject_names_the_project_of_its_envelope(value: bytes, project_id: int | None) -> None:
    """A reject names the project of its envelope, because counts per project must not include another project's
    rejects.
    """
    assert rejected(value).project_id == project_id
