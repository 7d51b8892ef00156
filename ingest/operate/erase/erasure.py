"""One erasure request. First, all tombstones of the request are written together. Then its replays are erased one
by one, at a limited rate.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ingest.operate.erase.certificate import certificate
from ingest.operate.erase.eraser import Eraser
from ingest.operate.erase.holdings import Holdings, converting_errors, describe_uncovered_data
from ingest.operate.erase.rows import replays_of
from ingest.operate.erase.tombstones import Tombstones
from ingest.reader.erasures import project_key, replay_key, user_key
from ingest.settings import Settings
from tasks.sinks.clickhouse import errors as clickhouse_errors


@dataclass(frozen=True, slots=True)
class ErasureResult:
    """The result for one replay. `left` has one line for each kind of data that was not erased."""

    found: Holdings
    left: list[str]
    certificate: dict[str, Any]


class Erasure:
    """Erases the replays with the ids in `named`, or those of `user`, or, with `everything`, those of the whole
    project. `rate`: replays per second.

    Methods raise EraseFailed, and the errors of `Operators`. A repeated run erases whatever an earlier run did
    not.
    """

    def __init__(
        self,
        settings: Settings,
        project_id: int,
        named: Sequence[str],
        *,
        user: str = "",
        everything: bool = False,
        rate: float = 5.0,
    ) -> None:
        self._settings, self._project_id, self._rate = settings, project_id, rate
        self._keys = [user_key(project_id, user)] if user else [project_key(project_id)] if everything else []
        self._named, self._user, self._chosen = list(dict.fromkeys(named)), user, bool(user or everything)
        self._tombstones = Tombstones(settings)

    def search(self) -> list[Holdings]:
        """Finds the stored data of each replay; changes nothing."""
        return [self._eraser(replay_id).search() for replay_id in self._replays()]

    def known(self, found: Holdings) -> bool:
        """Returns True if the replay existed, even if no erasable data is stored."""
        return bool(found.billed or found.letters or self._eraser(found.replay_id).is_already_erased())

    def uncovered_data(self, found: Holdings) -> list[str]:
        """Returns lines about data that an erasure would not remove."""
        return describe_uncovered_data(found)

    def erase(self, *, by: str, wait_seconds: float) -> list[ErasureResult]:
        """Writes the tombstones, waits for batches in flight, searches again, and erases the stored data."""
        keys = self._keys + [replay_key(self._project_id, replay_id) for replay_id in self._replays()]
        action = {"what": "erase begins", "by": by, "project": self._project_id, "replays": len(keys)}
        if len(keys) == 1 and not self._keys:
            action["replay_id"] = self._named[0]
        unsettled = self._tombstones.settle(self._tombstones.decide(keys, by, action), wait_seconds)
        # The second search includes replays of the user or project that have settled since the first search.
        current_keys = [replay_key(self._project_id, replay_id) for replay_id in self._replays()]
        if fresh := sorted(set(current_keys).difference(keys)):
            self._tombstones.decide(fresh, by, {**action, "replays": len(fresh)})
        done: list[ErasureResult] = []
        replays = self._replays()
        for replay_id in replays:
            began, eraser = time.monotonic(), self._eraser(replay_id)
            found = eraser.search()
            left = eraser.erase(found, by=by, unsettled=unsettled)
            done.append(ErasureResult(found, left, certificate(found, left, by=by, at=time.time())))
            if len(replays) > 1:
                time.sleep(max(0.0, 1.0 / self._rate - (time.monotonic() - began)))
        return done

    def _eraser(self, replay_id: str) -> Eraser:
        return Eraser(self._settings, self._project_id, replay_id)

    def _replays(self) -> list[str]:
        if not self._chosen:
            return self._named
        with converting_errors("clickhouse", clickhouse_errors.classify):
            return replays_of(self._settings, self._project_id, self._user)
