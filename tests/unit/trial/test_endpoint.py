"""The endpoint splits SDK envelopes into items as Relay does."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import msgspec
import pytest

from ingest.core.model import Segment
from ingest.trial.endpoint.body import decompressed
from ingest.trial.endpoint.envelope import split
from ingest.trial.endpoint.messages import ProducedMessage, ignored, message
from ingest.trial.endpoint.refusals import Reason, RequestRefused
from ingest.trial.endpoint.replay_event import LIST_MAX, Client, normalized
from tests.kit.envelopes import PROJECT, envelope, item, sent_by_the_sdk
from tests.kit.parsing import parsed
from tests.kit.recordings import RECORDINGS, Recording

REPLAY_ID = "a" * 32
AGENT = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/156.0.0.0 Safari/537.36"
)
CLIENT = Client("203.0.113.9", AGENT, 1_795_000_000.5)
RECORDING = b'{"segment_id":0}\n' + zlib.compress(b"[]")
EVENT = b'{"segment_id":0}'


def produced(content: bytes) -> ProducedMessage:
    """Returns the Kafka message for an envelope that contains a replay."""
    found = message(split(content), PROJECT, CLIENT)
    assert found is not None
    return found


def event_of(content: bytes) -> Any:
    """Returns the normalized replay event in the Kafka message for an envelope."""
    return json.loads(msgspec.msgpack.decode(produced(content).value)["replay_event"])


def normal(**fields: Any) -> Any:
    """Returns the normalized form of a replay event with the given fields."""
    content = json.dumps({"segment_id": 0, **fields}).encode()
    return json.loads(normalized(memoryview(content), REPLAY_ID, CLIENT))


@pytest.mark.parametrize("recorded", RECORDINGS, ids=lambda recorded: recorded.name)
def test_a_recorded_session_becomes_the_same_messages(recorded: Recording) -> None:
    """Envelopes recorded from SDK versions 7 and 11 become messages with the recorded payload and replay event."""
    for number, value in enumerate(recorded.values):
        content, expected = sent_by_the_sdk(recorded, number)
        given = msgspec.msgpack.decode(value)
        found = msgspec.msgpack.decode(produced(content).value)

        assert json.loads(found["replay_event"]) == expected
        assert found["replay_id"] == given["replay_id"]
        assert found["payload"].partition(b"\n")[0] == given["payload"].partition(b"\n")[0]
        assert isinstance(parsed(produced(content).value), Segment)


def test_a_plain_recording_is_compressed_and_a_compressed_one_is_unchanged() -> None:
    """A plain recording is compressed and a compressed recording is unchanged, so the message always contains a
    zlib stream.
    """
    plain = envelope(item("replay_recording", b'{"segment_id":3}\n[{"type":4}]'))
    packed = envelope(item("replay_recording", b'{"segment_id":3}\n' + zlib.compress(b"[{}]", 1)))

    head, _, body = msgspec.msgpack.decode(produced(plain).value)["payload"].partition(b"\n")
    assert (head, zlib.decompress(body)) == (b'{"segment_id":3}', b'[{"type":4}]')
    assert msgspec.msgpack.decode(produced(packed).value)["payload"].endswith(zlib.compress(b"[{}]", 1))


def test_a_video_item_has_its_event_and_its_recording() -> None:
    """A video item, which a mobile SDK sends as one msgpack map, yields its event, recording and video."""
    parts = {"replay_event": EVENT, "replay_recording": RECORDING, "replay_video": b"mp4"}
    found = msgspec.msgpack.decode(produced(envelope(item("replay_video", msgspec.msgpack.encode(parts)))).value)

    assert found["replay_video"] == b"mp4"
    assert found["payload"] == RECORDING
    assert json.loads(found["replay_event"])["replay_id"] == REPLAY_ID


def test_items_are_framed_by_length_or_by_newline() -> None:
    """Items are framed by length or by newline.

    A payload may be empty, contain newlines if its length is given, and end without a newline.
    """
    content = (
        b'{}\n{"type":"a"}\nx\n{"type":"b","length":3}\n1\n2\n\n\n{"type":"c","length":0}\n\n{"type":"d"}\nend'
    )

    found = split(content)
    assert [(one.type, bytes(one.payload)) for one in found.items] == [
        ("a", b"x"),
        ("b", b"1\n2"),
        ("c", b""),
        ("d", b"end"),
    ]
    assert split(b"{}").items == split(b"{}\n").items == ()


def test_items_of_other_types_are_counted() -> None:
    """Items of other types are counted and dropped; unknown types share one counter."""
    content = envelope(item("event", b"{}"), item("session", b"{}"), item("invented", b"{}"), item("event", b"{}"))

    assert message(split(content), PROJECT, CLIENT) is None
    assert ignored(split(content)) == {"event": 2, "session": 1, "other": 1}


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [("gzip", gzip.compress(b"{}", mtime=0)), ("deflate", zlib.compress(b"{}")), ("", b"{}"), ("identity", b"{}")],
)
def test_bodies_are_decompressed(encoding: str, packed: bytes) -> None:
    """Bodies in the encodings that browsers and mobile SDKs use are decompressed."""
    assert decompressed(packed, encoding) == b"{}"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", Reason.ENVELOPE_INVALID),
        (b"[]", Reason.ENVELOPE_INVALID),
        (b"{}\n[]\n", Reason.ENVELOPE_INVALID),
        (b'{}\n{"length":1}\nx', Reason.ENVELOPE_INVALID),
        (b'{}\n{"type":"event","length":-1}\nx', Reason.ENVELOPE_INVALID),
        (b'{}\n{"type":"event","length":true}\nx', Reason.ENVELOPE_INVALID),
        (b'{}\n{"type":"event","length":9}\nx', Reason.ENVELOPE_INVALID),
        (b'{}\n{"type":"event","length":1}\nxy', Reason.ENVELOPE_INVALID),
        (b"{}\n" + b"x" * 70_000, Reason.ENVELOPE_INVALID),
        (b"{}\n" + b"[" * 60_000, Reason.ENVELOPE_INVALID),
        (b"{}\n" + item("event", b"") * 101, Reason.ENVELOPE_INVALID),
        (b"{}\n" + item("replay_recording", RECORDING), Reason.ENVELOPE_INVALID),
        (envelope(item("replay_event", EVENT)), Reason.ENVELOPE_INVALID),
        (envelope(item("replay_recording", RECORDING) * 2), Reason.ENVELOPE_INVALID),
        (envelope(item("replay_recording", RECORDING), event_id="x" * 32), Reason.ENVELOPE_INVALID),
        (envelope(item("replay_recording", b"hello")), Reason.RECORDING_INVALID),
        (envelope(item("replay_recording", b'{"segment_id":-1}\n[]')), Reason.RECORDING_INVALID),
        (envelope(item("replay_recording", b'{"segment_id":65536}\n[]')), Reason.RECORDING_INVALID),
        (envelope(item("replay_recording", b'{"segment_id":0}\nhello')), Reason.RECORDING_INVALID),
        (envelope(item("replay_recording", RECORDING[:-3])), Reason.RECORDING_INVALID),
        (
            envelope(item("replay_recording", b'{"segment_id":0}\n' + zlib.compress(b"{}"))),
            Reason.RECORDING_INVALID,
        ),
        (envelope(item("replay_video", b"{}")), Reason.VIDEO_INVALID),
    ],
)
def test_a_malformed_envelope_is_refused_with_its_reason(content: bytes, reason: Reason) -> None:
    """A malformed envelope is refused with a reason that names the malformed part."""
    with pytest.raises(RequestRefused) as refused:
        message(split(content), PROJECT, CLIENT)
    assert refused.value.reason is reason


@pytest.mark.parametrize(
    "fields",
    [
        {"segment_id": None},
        {"segment_id": "0"},
        {"segment_id": True},
        {"segment_id": 65536},
        {"replay_id": "b" * 32},
        {"error_ids": ["c" * 32] * (LIST_MAX + 1)},
    ],
)
def test_an_invalid_replay_event_is_refused(fields: dict[str, Any]) -> None:
    """A replay event is refused if a field that identifies the segment is invalid or a list of ids is too long."""
    with pytest.raises(RequestRefused, match="the replay event is invalid"):
        normal(**fields)


def test_fields_of_wrong_types_are_left_out_of_a_replay_event() -> None:
    """A replay event omits fields of the wrong type; only the fields that identify the segment are required."""
    found = normal(
        urls="x", error_ids=[1, "d" * 32], tags=[["a"], 7, ["b", True]], user="me", contexts=3, request=[]
    )

    assert (found["urls"], found["error_ids"], found["tags"]) == ([], ["d" * 32], [["b", "true"]])
    assert found["contexts"]["browser"]["name"] == "HeadlessChrome"
    assert found["timestamp"] == CLIENT.received_at


@pytest.mark.parametrize(
    ("fields", "address"),
    [
        ({"user": {"ip_address": "{{auto}}"}}, "203.0.113.9"),
        ({"user": {"id": "1"}, "sdk": {"settings": {"infer_ip": "auto"}}}, "203.0.113.9"),
        ({"user": {"id": "1"}, "sdk": {"settings": {"infer_ip": "never"}}, "platform": "javascript"}, None),
        ({"user": {"id": "1"}, "platform": "javascript"}, "203.0.113.9"),
        ({"user": {"id": "1"}, "platform": "python"}, None),
        ({"user": {"id": "1", "ip_address": "198.51.100.7"}, "platform": "javascript"}, "198.51.100.7"),
    ],
)
def test_the_clients_address_is_added_if_the_sdk_asks_for_it(fields: dict[str, Any], address: str | None) -> None:
    """The client's address is added if the SDK requests it with `{{auto}}` or with a setting, or is an old browser
    SDK.
    """
    assert normal(**fields)["user"].get("ip_address") == address


@pytest.mark.parametrize(
    ("agent", "browser", "system", "device"),
    [
        (
            "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 "
            "Safari/537.36 Edg/141.0.0.0",
            "Edge 141.0.0",
            "Windows 10",
            "Other",
        ),
        (
            "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) "
            "Version/15.5 Safari/605.1.15",
            "Safari 15.5",
            "Mac OS X 10.15.7",
            "Mac",
        ),
        (
            "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
            "Version/18.6 Mobile/15E148 Safari/604.1",
            "Mobile Safari 18.6",
            "iOS 18.6",
            "iPhone",
        ),
        (
            "Mozilla/5.0 (Linux; Android 15; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Mobile "
            "Safari/537.36",
            "Chrome Mobile 141.0.0",
            "Android 15",
            "Other",
        ),
        (
            "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:143.0) Gecko/20100101 Firefox/143.0",
            "Firefox 143.0",
            "Linux",
            "Other",
        ),
    ],
)
def test_contexts_come_from_the_user_agent(agent: str, browser: str, system: str, device: str) -> None:
    """The contexts of a replay event are derived from the user agent.

    The derived browser is not confused with other browsers that the user agent also names.
    """
    found = normal(request={"headers": {"User-Agent": agent}})["contexts"]

    assert (found["browser"]["browser"], found["os"]["os"]) == (browser, system)
    assert found["device"] == {"family": device, "type": "device"}
