"""Generated sessions are realistic: reproducible, with the stated mix, and playable."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from typing import Any

import msgspec
import pytest

from ingest.local.load.manifest import Entry
from ingest.local.load.mix import Mix
from ingest.local.load.pages import Page, make_site
from ingest.local.load.produce import PROFILES, Profile, stream, values
from ingest.local.load.relay import Message
from ingest.local.load.segment import event_hash
from ingest.local.load.sessions import Session

START = 1_790_000_000
SITE = make_site(seed=3, pages=3, cards=(13, 16), rules=(4,))


def envelope(message: Message) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.msgpack.decode(message.value)
    return decoded


def body(message: Message) -> bytes:
    """Returns the inflated JSON array of a segment."""
    content: bytes = envelope(message)["payload"].split(b"\n", 1)[1]
    return content if content.startswith(b"[") else zlib.decompressobj().decompress(content)


def events(message: Message) -> list[Any]:
    found: list[Any] = json.loads(body(message))
    return found


def sessions(count: int, mix: Mix, site: tuple[Page, ...] = SITE) -> list[list[Message]]:
    return [list(Session(f"test:{number}", site, mix, START).messages()) for number in range(count)]


def test_the_same_seed_produces_the_same_bytes():
    """Two streams generated from the same seed are equal, and a stream from another seed differs."""
    first, again, other = (list(values(PROFILES["small"], 60, seed, START)) for seed in (1, 1, 2))

    assert first == again
    assert first != other


def test_the_mix_matches_the_profile():
    """The generated sizes and shares are close to the production figures that the profile is modelled on."""
    entries = [message.entry for message in stream(PROFILES["clean"], 1500, 1, START)]
    web = [entry for entry in entries if entry.kind == "segment"]
    seen: Counter[str] = Counter()
    for entry in web:
        seen.update(entry.seen)

    assert sum(entry.blob_bytes for entry in web) / len(web) == pytest.approx(166_000, rel=0.15)
    assert sum(entry.value_bytes for entry in web) / len(web) == pytest.approx(21_000, rel=0.2)
    assert seen["shape:snapshot"] / len(web) == pytest.approx(0.29, abs=0.05)
    assert seen["shape:heavy"] / len(web) == pytest.approx(0.45, abs=0.05)
    assert seen["shape:light"] / len(web) == pytest.approx(0.26, abs=0.05)
    assert seen["custom"] / len(web) == pytest.approx(13, abs=1.5)


def test_every_event_in_the_manifest_is_in_the_segment():
    """The manifest counts exactly the rrweb events, clicks, slow clicks, spans and canvas events in the
    segment.
    """
    for message in stream(PROFILES["small"], 200, 5, START):
        entry = message.entry
        if entry.kind != "segment" or entry.flaw == "body_not_json":
            continue
        found = events(message)
        categories = Counter(category(event) for event in found)

        assert entry.seen["rrweb"] == len(found)
        clicks = entry.seen.get("ui.click", 0) + entry.seen.get("negative_click", 0)
        # One of the malformed shapes is a click without a node.
        assert clicks <= categories["ui.click"] <= clicks + entry.seen.get("odd_event", 0)
        assert categories["resource.fetch"] == entry.seen.get("span:resource.fetch", 0)
        slow = sum(count for name, count in entry.seen.items() if name.startswith("ui.slowClickDetected"))
        assert categories["ui.slowClickDetected"] == slow


def category(event: Any) -> str:
    """Returns the category of a custom event, or an empty string for other events and malformed events."""
    if not isinstance(event, dict) or event.get("type") != 5:
        return ""
    payload = (event.get("data") or {}).get("payload")
    return str(payload.get("category") or payload.get("op") or "") if isinstance(payload, dict) else ""


def test_a_click_and_its_slow_click_report_share_an_identity():
    """A slow-click report, which is sent later and possibly in another segment, contains the click's time in whole
    seconds and the click's node.
    """
    mix = Mix(segments_mean=9, dead_click=0.5, rage_click=0.3, slow_click=0.2, mobile=0, negative_click=0)
    for session in sessions(10, mix):
        clicked = set()
        for message in session:
            for kind, second, node in clicks(message):
                if kind == "ui.click":
                    clicked.add((second, node))
                else:
                    assert (second, node) in clicked
            known = {event_hash(message.entry.replay_id, second, node) for second, node in clicked}
            assert {click.event_hash for click in message.entry.clicks} <= known


def clicks(message: Message) -> list[tuple[str, int, int]]:
    """Returns (category, second, node) for each click and slow click that names a node."""
    found = []
    for event in events(message):
        if category(event) in ("ui.click", "ui.slowClickDetected"):
            payload = event["data"]["payload"]
            node = (payload.get("data") or {}).get("node")
            if isinstance(node, dict):
                found.append((category(event), int(payload["timestamp"]), node["id"]))
    return found


def test_at_most_the_allowed_clicks_of_a_segment_are_expected():
    """If a segment has more than twenty clicks, the manifest expects only the first twenty."""
    for session in sessions(6, Mix(click_flood=1.0, mobile=0, dead_click=0, rage_click=0, slow_click=0)):
        for message in session:
            assert message.entry.seen["ui.click"] == 26
            assert len(message.entry.clicks) == 20


def test_a_recording_refers_only_to_nodes_that_exist_at_that_moment():
    """A player that enforces rrweb's rules finds every node to which a recording refers.

    Snapshots come first, removals before additions, and each id is used once.
    """
    mix = Mix(segments_mean=8, mobile=0, canvas=0.5, odd_event=0, broken_body=0, raw_body=0.5)
    for session in sessions(8, mix):
        player = Player()
        for message in session:
            for event in events(message):
                player.play(event)
        assert player.snapshots >= 1


class Player:
    """Tracks the page's node ids as rrweb's mirror does, and fails on an unplayable event."""

    def __init__(self) -> None:
        self.ids: dict[int, list[int]] = {}
        self.snapshots = 0
        self.clock = 0

    def play(self, event: dict[str, Any]) -> None:
        if event["type"] == 5:
            return
        assert event["timestamp"] >= self.clock
        self.clock = event["timestamp"]
        if event["type"] == 2:
            self.ids = {}
            self.snapshots += 1
            self.add(event["data"]["node"], parent=None)
        elif event["type"] == 3:
            assert self.snapshots, "an incremental event before the first snapshot"
            self.change(event["data"])

    def change(self, data: dict[str, Any]) -> None:
        for removal in data.get("removes", ()):
            assert removal["id"] in self.ids[removal["parentId"]]
            self.ids[removal["parentId"]].remove(removal["id"])
            self.drop(removal["id"])
        for addition in data.get("adds", ()):
            assert addition["node"].get("childNodes", []) == []
            self.add(addition["node"], addition["parentId"])
        named = [*data.get("texts", ()), *data.get("attributes", ()), *data.get("positions", ())]
        named += [data] if "id" in data else []
        for item in named:
            assert item["id"] in self.ids

    def add(self, node: dict[str, Any], parent: int | None) -> None:
        assert node["id"] not in self.ids
        self.ids[node["id"]] = []
        if parent is not None:
            self.ids[parent].append(node["id"])
        for child in node.get("childNodes", ()):
            self.add(child, node["id"])

    def drop(self, node_id: int) -> None:
        for child in self.ids.pop(node_id):
            self.drop(child)


def test_the_manifest_names_the_object_and_its_digest():
    """The manifest contains the name of the object, and the digest of the body: as received, or inflated if the
    pipeline compresses it.
    """
    for message in stream(PROFILES["small"], 150, 9, START):
        entry, whole = message.entry, None
        if entry.kind == "reject":
            continue
        whole = envelope(message)
        content = whole["payload"].split(b"\n", 1)[1]
        if entry.kind == "video":
            video = whole["replay_video"]
            packed = b"\x01" + len(video).to_bytes(4, "big") + video + body(message)
            assert digest(packed) == entry.blob_sha256
        else:
            assert digest(content) == entry.blob_sha256
        assert content.startswith(b"[") or entry.kind == "video" or entry.blob_exact
        place = f"{whole['retention_days']}/{whole['project_id']}/{whole['replay_id']}/{entry.segment_id}"
        assert place == entry.blob


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_duplicates_and_late_segments_are_boundedly_out_of_order():
    """A duplicate equals the message sent earlier, and a late segment is delayed by a bounded number of
    messages.
    """
    profile = Profile("test", duplicates=0.2, late=0.2, malformed=0, pages=2, cards=(3, 4), style_rules=(2,))
    messages = list(stream(profile, 300, 1, START))
    seen: dict[tuple[str, int], bytes] = {}
    disorder = 0
    last: dict[str, int] = {}
    for message in messages:
        entry: Entry = message.entry
        key = (entry.replay_id, entry.segment_id)
        assert key not in seen or seen[key] == message.value
        seen[key] = message.value
        disorder += entry.segment_id < last.get(entry.replay_id, -1)
        last[entry.replay_id] = entry.segment_id

    assert len(seen) == 300
    assert sum(message.entry.duplicate for message in messages) == len(messages) - 300 > 30
    assert disorder > 10
