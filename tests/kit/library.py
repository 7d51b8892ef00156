"""A bucket and tables with a few replays of every kind, for tests that read replays back.

shop      a complete session recorded by SDK 11, with clicks, a rage click and requests
old_shop  a session on the same page, recorded by SDK 7, in the same project
mobile    a mobile replay with a video
holed     segment 2 was never stored, 3 has no object, 4 has no row, and 0 was delivered twice
spoiled   the object of segment 1 contains other data
shared    one id in two projects
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from ingest.local.launch import settings_of
from ingest.settings import Settings
from ingest.testing.messages import video_recording, viewport_event
from tasks.migrate import migrate
from tasks.sinks.clickhouse import sink as clickhouse
from tasks.sinks.gcs import sink as gcs
from tests.kit.recordings import RECORDINGS, Recording
from tests.kit.stored_replays import message, store_replays

PROJECT, OTHER_PROJECT, RECORDED_PROJECT = 7, 8, 42
MOBILE, HOLED, SPOILED, SHARED = "a" * 32, "b" * 32, "c" * 32, "d" * 32
VIDEO = b"\x00\x00\x00\x18ftypmp42 and the rest of it"
OLD_SECONDS = 3 * 86_400


@dataclass(frozen=True)
class Library:
    """The connection settings, the replays, and the time when they were received.

    `env` contains the REPLAYS_* variables, and `now` is in Unix seconds.
    """

    env: dict[str, str]
    settings: Settings
    now: int
    shop: Recording
    old_shop: Recording

    @property
    def shop_id(self) -> str:
        return str(self.shop.facts["replayId"])

    @property
    def old_shop_id(self) -> str:
        return str(self.old_shop.facts["replayId"])


def fill(env: dict[str, str]) -> Library:
    """Creates the bucket and the tables that the variables name, and writes every replay."""
    settings = settings_of(env)
    for _ in migrate(settings):
        pass
    now = int(time.time())
    shops = {recorded.name: recorded for recorded in RECORDINGS if recorded.name.endswith("-shop")}
    library = Library(env, settings, now, shops["v11-shop"], shops["v7-shop"])
    first_offset = 0

    def write(values: list[bytes]) -> None:
        nonlocal first_offset
        store_replays(settings, values, first_offset=first_offset)
        first_offset += 100

    write(library.shop.values)
    write(library.old_shop.values)
    write([video_recording(VIDEO, project_id=PROJECT, replay_id=MOBILE, received=now)])
    holed = [_segment(HOLED, number, now, error_ids=["d" * 32] if number == 0 else []) for number in (0, 1, 3, 4)]
    write(holed)
    write([_segment(SPOILED, number, now - OLD_SECONDS, release="shop@old") for number in (0, 1)])
    write([_segment(SHARED, 0, now - 60, project_id=project) for project in (PROJECT, OTHER_PROJECT)])
    _damage(settings)
    _keep_copies(settings)
    write(holed[:1])
    return library


def _segment(replay_id: str, segment_id: int, at: int, *, project_id: int = PROJECT, **document: Any) -> bytes:
    """Returns a segment with a page visit; `document` is added to its replay_event."""
    event = {**viewport_event(), "timestamp": at * 1000}
    about = {"urls": [f"https://shop.example/{segment_id}"], "timestamp": at, "segment_id": segment_id, **document}
    about.setdefault("release", "shop@new")
    return message(replay_id, segment_id, [event], project_id=project_id, at=at, document=about)


def _damage(settings: Settings) -> None:
    """Deletes and damages stored data, to simulate losses over time."""
    client = gcs.client(settings)
    try:
        bucket = client.bucket(settings.gcs_bucket)
        bucket.blob(f"30/{PROJECT}/{HOLED}/3").delete()
        bucket.blob(f"30/{PROJECT}/{HOLED}/notes").upload_from_string(b"not ours")
        bucket.blob(f"30/{PROJECT}/{SPOILED}/1").upload_from_string(b"no zlib stream")
    finally:
        client.close()
    _forget_row(settings, HOLED, 4)


def _keep_copies(settings: Settings) -> None:
    """Stops merges, which would merge two deliveries into one row at an arbitrary time."""
    server = clickhouse.client(settings)
    try:
        server.command("SYSTEM STOP MERGES replay_segments")
    finally:
        server.close()


def _forget_row(settings: Settings, replay_id: str, segment_id: int) -> None:
    server = clickhouse.client(settings)
    try:
        server.command(
            "DELETE FROM replay_segments WHERE replay_id = {id:UUID} AND segment_id = {segment:UInt64}",
            parameters={"id": replay_id, "segment": segment_id},
        )
    finally:
        server.close()
