"""Determines whether a message was erased. Built from `tasks.kafka.decisions`.

The erasure of a replay also covers messages that arrive later. The erasure of a project or user covers messages
that Relay received before the decision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ingest.core.model import Segment
from tasks.kafka.decisions import ALL, ERASED, REPLAY, USER

NO_EXPIRY = 0


class _Users(msgspec.Struct):
    """Columns that identify a user."""

    user: str | None = None
    user_id: str | None = None
    user_name: str | None = None
    user_email: str | None = None


_users = msgspec.json.Decoder(_Users).decode


@dataclass(frozen=True)
class Erasures:
    """The erasures in force. The object is immutable, so another thread can publish a new object while the loop
    still reads the old one.

    `replays`: (project, replay id). `projects`: a time for each erased project, in Unix seconds by Relay's clock;
    messages received up to that time are erased. `users`: the corresponding times for erased users, by project and
    by digest of the user.
    """

    replays: frozenset[tuple[int, str]] = frozenset()
    projects: Mapping[int, float] = field(default_factory=dict)
    users: Mapping[int, Mapping[str, float]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.replays or self.projects or self.users)

    def covers(self, project_id: int, replay_id: str, received: float) -> bool:
        """Returns True if a message of this replay and receive time is covered by the erasure of its replay or
        project."""
        return (project_id, replay_id) in self.replays or received <= self.projects.get(project_id, -1.0)

    def covers_user_of(self, segment: Segment) -> bool:
        """Returns True if the segment's user was erased."""
        users = self.users.get(segment.project_id)
        if not users:
            return False
        return any(
            segment.received <= users.get(user_digest(segment.project_id, name), -1.0)
            for row in segment.clickhouse
            for name in _names(row.json)
        )


def erasures_of(decisions: Mapping[str, Mapping[str, Any]], now: float) -> Erasures:
    """Returns the erasures in these decisions, without those that have expired. `now`: Unix seconds."""
    replays = set[tuple[int, str]]()
    projects: dict[int, float] = {}
    users: dict[int, dict[str, float]] = {}
    for key, value in decisions.items():
        if not key.startswith(f"{ERASED}/"):
            continue
        until = float(value.get("until", NO_EXPIRY))
        if until != NO_EXPIRY and until < now:
            continue
        _, project, *rest = key.split("/")
        project_id = int(project)
        if rest[0] == REPLAY:
            replays.add((project_id, rest[1]))
        elif rest[0] == USER:
            users.setdefault(project_id, {})[rest[1]] = float(value["at"])
        else:
            projects[project_id] = float(value["at"])
    return Erasures(frozenset(replays), projects, users)


def replay_key(project_id: int, replay_id: str) -> str:
    """Returns the key for the erasure of one replay. `replay_id`: 32 hex digits."""
    return f"{ERASED}/{project_id}/{REPLAY}/{replay_id}"


def user_key(project_id: int, user: str) -> str:
    """Returns the key for the erasure of one user. The key contains only a digest of `user`."""
    return f"{ERASED}/{project_id}/{USER}/{user_digest(project_id, user)}"


def project_key(project_id: int) -> str:
    """Returns the key for the erasure of a whole project."""
    return f"{ERASED}/{project_id}/{ALL}"


def user_digest(project_id: int, user: str) -> str:
    """Returns a digest of `user`, 32 hex digits. The same `user` has a different digest in each project."""
    return hashlib.blake2b(f"{project_id}/{user}".encode(), digest_size=16, person=b"erased user").hexdigest()


def _names(row: bytes) -> set[str]:
    try:
        found = _users(row)
    except msgspec.MsgspecError:
        return set()
    return {name for name in (found.user, found.user_id, found.user_name, found.user_email) if name}
