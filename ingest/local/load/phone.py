"""Simulates a visit on a phone: a video with taps and device events instead of rrweb mutations."""

from __future__ import annotations

import random

from ingest.local.load.segment import SEGMENT_MS, Event, Segment, event_hash


def fill_mobile_segment(rng: random.Random, segment: Segment, replay_id: str, video_bytes: int) -> None:
    """Fills a segment with a video of this size and the events of the visit."""
    at = segment.start_ms
    segment.put(at, {"type": 4, "data": {"href": "", "width": 412, "height": 892}, "timestamp": at}, "viewport")
    payload = {
        "segmentId": segment.number,
        "size": video_bytes,
        "duration": SEGMENT_MS,
        "encoding": "h264",
        "container": "mp4",
        "width": 412,
        "height": 892,
        "frameCount": 5,
        "frameRateType": "constant",
        "frameRate": 1,
        "left": 0,
        "top": 0,
    }
    segment.put(at + 1, {"type": 5, "timestamp": at + 1, "data": {"tag": "video", "payload": payload}}, "video")
    for number in range(rng.randint(0, 4)):
        ms = at + 1000 * number + rng.randrange(900)
        view = rng.choice(("btn_buy", "list_item", "tab_home", "search_box"))
        data = {"view.id": view, "view.class": "androidx.appcompat.widget.AppCompatButton"}
        segment.breadcrumb(ms, "ui.tap", {"message": view, "data": data})
        segment.taps.append(event_hash(replay_id, ms // 1000, view))
    device_events: tuple[tuple[str, Event, float], ...] = (
        ("device.battery", {"level": rng.randrange(5, 100), "charging": False}, 0.4),
        ("device.orientation", {"position": "portrait"}, 0.1),
        ("device.connectivity", {"state": "wifi"}, 0.2),
        ("ui.scroll", {"view.id": "list", "direction": "down"}, 0.3),
        ("ui.swipe", {"view.id": "carousel", "direction": "left"}, 0.2),
        ("app.background", {}, 0.05),
        ("app.foreground", {}, 0.05),
    )
    for category, facts, chance in device_events:
        if rng.random() < chance:
            segment.breadcrumb(at + rng.randrange(SEGMENT_MS), category, {"data": facts})


def mp4(rng: random.Random, size: int) -> bytes:
    """Returns a file with the boxes of a real recording around `size` incompressible bytes.

    No player can decode the file.
    """
    header = bytes(12) + (1000).to_bytes(4, "big") + SEGMENT_MS.to_bytes(4, "big") + bytes(80)
    return (
        _box(b"ftyp", b"isom\x00\x00\x02\x00isomiso2avc1mp41")
        + _box(b"moov", _box(b"mvhd", header))
        + _box(b"mdat", rng.randbytes(size))
    )


def _box(kind: bytes, content: bytes) -> bytes:
    return (len(content) + 8).to_bytes(4, "big") + kind + content
