"""The state of one batch in Redis: the done mark, last error and unfinished runs of each task, and the projects of
the batch's messages.

A staged batch is kept until it settles, and its done marks for an hour after that. Payloads of finished tasks are
deleted, so `projects` contains only the projects of items that are not written yet.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
from redis import Redis

from tasks.settings import Settings
from tasks.staging import Staging
from tasks.units import MiB
from tasks.wire import (
    Blob,
    Incompatible,
    Item,
    Manifest,
    Row,
    SinkName,
    TaskEntry,
    batch_key,
    decode_items,
)

SCAN_SECONDS_MAX = 2.0
SCAN_COUNT = 2000
PROJECTS_MAX = 50
# Payloads up to this size are read to find their projects.
PAYLOAD_BYTES_MAX = 16 * MiB


@dataclass(frozen=True, slots=True)
class TaskHistory:
    """One flush task. `starts`: number of runs that started but did not end. `error`: the last run's error, until
    the task is done."""

    name: str
    stage: str
    sink: str
    items: int
    size_bytes: int
    done: bool
    starts: int
    error: str


@dataclass(frozen=True, slots=True)
class BatchHistory:
    """A staged batch. `projects` may be incomplete if `projects_complete` is false."""

    reader: str
    topic: str
    partition: int
    start: int
    stop: int
    tasks: tuple[TaskHistory, ...]
    projects: tuple[str, ...]
    projects_complete: bool

    @property
    def settled(self) -> bool:
        """True if all tasks are done."""
        return all(task.done for task in self.tasks)


def batch_history(
    client: Redis[bytes], settings: Settings, batch_id: str, reference: str = ""
) -> BatchHistory | None:
    """Finds a batch by its id or by its exact `reference`. Returns None if no part of the batch is staged. Raises
    RedisError.
    """
    staging = Staging(client, settings)
    keys = [staging.key(reference)] if reference else _keys(staging.client, settings, batch_id)
    for key in keys:
        try:
            manifest = staging.manifest(key)
        except Incompatible:  # staged by a newer release
            continue
        if manifest is not None:
            return _history_of(staging, key, manifest)
    return None


def _keys(client: Any, settings: Settings, batch_id: str) -> list[str]:
    """Returns the keys of this batch, found within SCAN_SECONDS_MAX."""
    escaped = "".join(f"\\{each}" if each in "*?[]\\^" else each for each in batch_id)
    pattern = batch_key(escaped, "*", settings.key_prefix)
    ends_at, cursor, found = time.monotonic() + SCAN_SECONDS_MAX, 0, set[str]()
    while time.monotonic() < ends_at:
        cursor, keys = client.scan(cursor, match=pattern, count=SCAN_COUNT)
        found |= {key.decode() for key in keys}
        if cursor == 0:
            break
    return sorted(found)


def _history_of(staging: Staging, key: str, manifest: Manifest) -> BatchHistory:
    names = [entry.name for entry in manifest.tasks]
    missing = set(staging.unmarked(manifest, names)) if names else set()
    errors = staging.client.hmget(key, [f"error/{name}" for name in names]) if names else []
    starts = _starts(staging.client, key)
    tasks = tuple(
        TaskHistory(
            name=entry.name,
            stage=entry.stage,
            sink=entry.sink,
            items=entry.items,
            size_bytes=entry.size_bytes,
            done=entry.name not in missing,
            starts=starts.get(entry.name, 0),
            error=(error or b"").decode("utf-8", "replace") if entry.name in missing else "",
        )
        for entry, error in zip(manifest.tasks, errors, strict=True)
    )
    projects, complete = _projects(staging.client, key, [one for one in manifest.tasks if one.name in missing])
    return BatchHistory(
        manifest.reader,
        manifest.topic,
        manifest.partition,
        manifest.start,
        manifest.stop,
        tasks,
        projects,
        complete,
    )


def _starts(client: Any, key: str) -> dict[str, int]:
    """Returns the number of starts without an end, by task, from the fields
    `starts/<stage>/<sink>/<number>/<id>`.
    """
    found: dict[str, int] = {}
    names = [name.decode("utf-8", "replace") for name in client.hkeys(key)]
    fields = [name for name in names if name.startswith("starts/")]
    for name, count in zip(fields, client.hmget(key, fields) if fields else [], strict=True):
        task = "/".join(name.split("/")[1:4])
        found[task] = found.get(task, 0) + int(count or 0)
    return found


def _projects(client: Any, key: str, entries: Iterable[TaskEntry]) -> tuple[tuple[str, ...], bool]:
    """Projects of the staged payloads, and whether all payloads were read."""
    found: set[str] = set()
    complete, left = True, PAYLOAD_BYTES_MAX
    for entry in entries:
        if entry.sink not in (SinkName.GCS, SinkName.CLICKHOUSE, SinkName.BIGQUERY):
            continue
        left -= entry.size_bytes
        data = client.hget(key, entry.name) if left >= 0 else None
        if data is None:
            complete = False
            continue
        try:
            projects = {_project_of(item) for item in decode_items(SinkName(entry.sink), data)}
        except Incompatible:
            complete = False
            continue
        complete = complete and "" not in projects
        found |= projects - {""}
    ordered = sorted(found, key=lambda one: (len(one), one))
    return tuple(ordered[:PROJECTS_MAX]), complete and len(ordered) <= PROJECTS_MAX


class _ProjectField(msgspec.Struct):
    project_id: int | str | None = None


_rows = msgspec.json.Decoder(_ProjectField)


def _project_of(item: Item) -> str:
    """Returns the project id, read from the name of a recording's object or from a row; empty if there is none."""
    if isinstance(item, Blob):
        parts = item.name.split("/")
        # <retention>/<project>/<replay>/<segment>; packed objects have other names
        return parts[1] if len(parts) == 4 and parts[0].isdecimal() and parts[1].isdecimal() else ""
    if isinstance(item, Row):
        try:
            project = _rows.decode(item.json).project_id
        except msgspec.MsgspecError:
            return ""
        return "" if project is None else str(project)[:40]
    return ""
