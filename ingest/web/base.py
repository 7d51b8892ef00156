"""What every answer of the web server has in common: its state, its headers, who is answered, errors as JSON.

Recordings are other people's sessions and other people's pages: scripts, styles and requests that are not ours are
forbidden by the content security policy, which the player's frame inherits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tornado import web

from ingest.settings import Settings
from ingest.web.blobs import BlobError, Unpacked
from ingest.web.desk import Desk, Refused
from ingest.web.model import NotFound, ReadError, Replay, Segments
from ingest.web.reads import Reads

NAMES = frozenset(("127.0.0.1", "localhost"))
KNOWN_REPLAYS_MAX = 64
KNOWN_SECONDS_MAX = 20.0
TOKEN_HEADER = "X-Replays-Token"

# Recorded pages bring inline styles, and images and fonts as data; nothing of them may load, run or send.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src data: blob:",
        "font-src data:",
        "media-src 'self' data: blob:",
        "connect-src 'self'",
        "frame-src 'none'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
T = TypeVar("T")


@dataclass
class State:
    """What the handlers share. `known`: segments of replays that were just looked at."""

    settings: Settings
    reads: Reads
    desk: Desk
    pool: ThreadPoolExecutor
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    known: OrderedDict[tuple[int, str], tuple[float, Replay, Segments]] = field(default_factory=OrderedDict)

    def look_up(self, project_id: int, replay_id: str, *, fresh: bool = False) -> tuple[Replay, Segments]:
        """A replay and its segments, as of now or a few seconds ago."""
        key = (project_id, replay_id)
        held = self.known.get(key)
        if held is None or fresh or time.monotonic() - held[0] > KNOWN_SECONDS_MAX:
            replay = self.reads.replay(replay_id, project_id)
            held = self.known[key] = (time.monotonic(), replay, self.reads.segments(replay))
            while len(self.known) > KNOWN_REPLAYS_MAX:
                with contextlib.suppress(KeyError):
                    self.known.popitem(last=False)
        return held[1], held[2]

    def recording(self, project_id: int, replay_id: str, segment_id: int) -> Unpacked:
        """One segment's recording. Raises NotFound, ReadError or BlobError."""
        _, segments = self.look_up(project_id, replay_id)
        return self.reads.recording(segments, segment_id)


class Handler(web.RequestHandler):
    """Headers, the check of the host's name, errors as JSON, work in threads."""

    state: State

    def initialize(self, state: State) -> None:
        self.state = state

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        for name, value in HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        if self.request.host_name not in NAMES:
            raise web.HTTPError(421, reason="this server answers to 127.0.0.1 and localhost only")

    async def run(self, work: Callable[[], T]) -> T:
        """Does this in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.state.pool, work)

    def answer(self, value: Any) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(value))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        text = error.reason if isinstance(error, web.HTTPError) and error.reason else self._reason
        for kind, status in ((NotFound, 404), (BlobError, 422), (ReadError, 503)):
            if isinstance(error, kind):
                status_code, text = status, str(error)
        if isinstance(error, Refused):
            status_code, text = error.status, str(error)
        self.set_status(status_code)
        self.answer({"error": text})

    def log_exception(self, kind: Any, value: Any, trace: Any) -> None:
        """What the page is told anyway is not logged with a traceback."""
        if not isinstance(value, (NotFound, BlobError, ReadError, Refused)):
            super().log_exception(kind, value, trace)

    def flag(self, name: str) -> bool:
        return self.get_query_argument(name, "") in ("1", "true", "on")

    def number(self, name: str, low: int, high: int) -> int | None:
        """A query argument, None when it is absent or empty. Anything else is a 400."""
        text = self.get_query_argument(name, "")
        if not text:
            return None
        if not text.isdecimal() or not low <= int(text) <= high:
            raise web.HTTPError(400, reason=f"{name} must be a number from {low} to {high}")
        return int(text)


class NothingHandler(Handler):
    """Any other address."""

    def prepare(self) -> None:
        super().prepare()
        raise web.HTTPError(404, reason="there is nothing at this address")
