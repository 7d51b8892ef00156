"""All of it over HTTP, for a browser on this machine: pages, what they ask for, and an operator's buttons.

It listens on the loopback interface only, and answers to no other name, so that a page elsewhere cannot reach it
through a name of its own that points here. Recordings are other people's sessions and other people's pages:
scripts, styles and requests that are not ours are forbidden by the content security policy, which the player's
frame inherits. The operator's part asks for Flower's password; what it changes, it changes only for requests that
carry a token which no other site can read.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import json
import secrets
import signal
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tornado import httpserver, netutil, web

from ingest.settings import Settings
from ingest.web.blobs import BlobError, playable
from ingest.web.desk import Desk, Refused
from ingest.web.journey import journeys
from ingest.web.model import Filter, NotFound, ReadError, Replay, SegmentFacts, Segments
from ingest.web.present import page_dict, replay_dict, segments_dict, timeline_dict
from ingest.web.reads import Reads

STATIC = Path(__file__).parent / "static"
HOST = "127.0.0.1"
NAMES = frozenset(("127.0.0.1", "localhost"))
THREADS = 6
BODY_BYTES_MAX = 256 * 1024
KNOWN_REPLAYS_MAX = 64
KNOWN_SECONDS_MAX = 20.0
TOKEN_HEADER = "X-Replays-Token"
PATH = r"/api/replays/(\d{1,20})/([0-9a-fA-F-]{32,36})"

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

    def look_up_segment(self, project_id: int, replay_id: str, segment_id: int) -> SegmentFacts:
        """One segment that can be read. Raises NotFound."""
        _, segments = self.look_up(project_id, replay_id)
        for one in segments.readable:
            if one.segment_id == segment_id:
                return one
        raise NotFound(f"segment {segment_id} of replay {replay_id} is not stored")


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


class PageHandler(Handler):
    """One of the static pages."""

    def initialize(self, state: State, page: str = "") -> None:
        super().initialize(state)
        self.page = page

    def get(self, *_: str) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish((STATIC / self.page).read_bytes())


class StaticHandler(web.StaticFileHandler):
    """Scripts and styles: asked for again each time, sent only when changed."""

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        for name, value in HEADERS.items():
            self.set_header(name, value)
        self.set_header("Cache-Control", "no-cache")

    def prepare(self) -> None:
        if self.request.host_name not in NAMES:
            raise web.HTTPError(421)


class ProjectsHandler(Handler):
    """The choices of the list's filters."""

    async def get(self) -> None:
        project = self.number("project", 0, 2**64 - 1)
        reads = self.state.reads
        projects = await self.run(reads.projects)
        releases = await self.run(lambda: reads.releases(project))
        self.answer(
            {
                "projects": [
                    {"project_id": str(one.project_id), "replays": one.replays, "last_at": one.last_at}
                    for one in projects
                ],
                "releases": releases,
            }
        )


class ReplaysHandler(Handler):
    """The list."""

    async def get(self) -> None:
        seconds = self.number("last_seconds", 1, 10 * 365 * 86400)
        chosen = Filter(
            project_id=self.number("project", 0, 2**64 - 1),
            rage=self.flag("rage"),
            dead=self.flag("dead"),
            errors=self.flag("errors"),
            release=self.get_query_argument("release", ""),
            text=self.get_query_argument("text", ""),
            since=time.time() - seconds if seconds else self.number("since", 0, 2**32 - 1),
            until=self.number("until", 0, 2**32 - 1),
            limit=self.number("limit", 1, 500) or 50,
            offset=self.number("offset", 0, 1_000_000) or 0,
        )
        self.answer(_for_javascript(page_dict(await self.run(lambda: self.state.reads.replays(chosen)))))


class ReplayHandler(Handler):
    """One replay: what it is, its segments, the facts of its ingestion."""

    async def get(self, project: str, replay_id: str) -> None:
        state = self.state
        replay, segments = await self.run(lambda: state.look_up(int(project), replay_id, fresh=True))
        places = [
            (o.partition, o.offset) for o in segments.all if o.partition is not None and o.offset is not None
        ]
        known = await self.run(lambda: journeys(state.settings, places))
        self.answer(
            _for_javascript(
                {"replay": replay_dict(replay), "ingestion": segments_dict(state.settings, segments, known)}
            )
        )


class TimelineHandler(Handler):
    """What happened in it."""

    async def get(self, project: str, replay_id: str) -> None:
        _, segments = await self.run(lambda: self.state.look_up(int(project), replay_id))
        self.answer(timeline_dict(await self.run(lambda: self.state.reads.timeline(segments))))


class SegmentHandler(Handler):
    """One segment's recording: what a player draws of it, or all of it as it was sent (`?raw=1`)."""

    async def get(self, project: str, replay_id: str, segment: str) -> None:
        raw = self.flag("raw")

        def work() -> bytes:
            one = self.state.look_up_segment(int(project), replay_id, int(segment))
            recording = self.state.reads.segment(one.object).recording
            return recording if raw else playable(recording)

        content = await self.run(work)
        self.set_header("Content-Type", "application/json")
        if raw:
            self.set_header("Content-Disposition", f'attachment; filename="{replay_id}-{segment}.json"')
        self.finish(content)


class VideoHandler(Handler):
    """One segment's video, whole or a range of it."""

    async def get(self, project: str, replay_id: str, segment: str) -> None:
        def work() -> bytes:
            one = self.state.look_up_segment(int(project), replay_id, int(segment))
            video = self.state.reads.segment(one.object).video
            if video is None:
                raise NotFound(f"segment {segment} has no video")
            return video

        video = await self.run(work)
        self.set_header("Content-Type", "video/mp4")
        self.set_header("Accept-Ranges", "bytes")
        asked = byte_range(self.request.headers.get("Range", ""), len(video))
        if asked is not None:
            start, stop = asked
            self.set_status(206)
            self.set_header("Content-Range", f"bytes {start}-{stop - 1}/{len(video)}")
            video = video[start:stop]
        self.finish(video)


class OperatorHandler(Handler):
    """Behind Flower's password. What changes something needs the token too."""

    user = ""

    def prepare(self) -> None:
        super().prepare()
        people = [
            p.strip() for p in self.state.settings.flower_basic_auth.get_secret_value().split(",") if p.strip()
        ]
        if not people:
            raise web.HTTPError(
                403,
                reason="the operator's page has Flower's password: set REPLAYS_FLOWER_BASIC_AUTH=user:password",
            )
        given = _credentials(self.request.headers.get("Authorization", ""))
        matches = [hmac.compare_digest(given.encode(), person.encode()) for person in people]
        if not any(matches):
            raise web.HTTPError(401, reason="name and password, as for Flower")
        self.user = given.partition(":")[0]
        if self.request.method != "GET":
            self._expect_own_page()

    def _expect_own_page(self) -> None:
        site = self.request.headers.get("Sec-Fetch-Site", "same-origin")
        token = self.request.headers.get(TOKEN_HEADER, "")
        if site != "same-origin" or not hmac.compare_digest(token.encode(), self.state.token.encode()):
            raise web.HTTPError(403, reason="this request does not come from the operator's page; load it again")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """An error's own headers: those set before it are gone by now."""
        self._ask_who(status_code)
        super().write_error(status_code, **kwargs)

    def _ask_who(self, status_code: int) -> None:
        if status_code == 401:
            self.set_header("WWW-Authenticate", 'Basic realm="replays-ingest operator", charset="UTF-8"')

    def body(self) -> dict[str, Any]:
        try:
            found = json.loads(self.request.body or b"{}")
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise web.HTTPError(400, reason="a JSON object was expected")
        return found


class OperatorPageHandler(OperatorHandler):
    """The page itself."""

    def get(self) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish((STATIC / "operate.html").read_bytes())

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """A browser shows this, so it is text."""
        self._ask_who(status_code)
        error = kwargs.get("exc_info", (None, None, None))[1]
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(error.reason if isinstance(error, web.HTTPError) and error.reason else self._reason)


class LookHandler(OperatorHandler):
    """The state of the system, and the token for its buttons."""

    async def get(self) -> None:
        found = await self.run(self.state.desk.look)
        self.answer({**found, "token": self.state.token, "user": self.user})


class BatchHandler(OperatorHandler):
    """Retry a parked batch, or give it up."""

    async def post(self, what: str) -> None:
        body, desk = self.body(), self.state.desk
        batch_id, reason = str(body.get("batch_id", "")), str(body.get("reason", ""))
        if what == "retry":
            said = await self.run(lambda: desk.retry_batch(batch_id, self.user))
        else:
            said = await self.run(lambda: desk.abandon_batch(batch_id, reason, self.user))
        self.answer({"said": said})


class LettersHandler(OperatorHandler):
    """Dead letters: the list, and replaying some of them."""

    async def get(self) -> None:
        replayed = self.flag("replayed")
        self.answer(await self.run(lambda: self.state.desk.dead_letters(include_replayed=replayed)))

    async def post(self) -> None:
        ids = self.body().get("ids")
        if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
            raise web.HTTPError(400, reason="ids must be a list of letter ids")
        self.answer(await self.run(lambda: self.state.desk.replay_letters(ids, self.user)))


def _for_javascript(value: Any) -> Any:
    """The same with project ids as text: JavaScript's numbers end at 2**53."""
    if isinstance(value, dict):
        return {k: str(v) if k == "project_id" else _for_javascript(v) for k, v in value.items()}
    return [_for_javascript(v) for v in value] if isinstance(value, list) else value


def _credentials(header: str) -> str:
    """`user:password` of a Basic authorisation, "" without one."""
    kind, _, rest = header.partition(" ")
    if kind.lower() != "basic":
        return ""
    try:
        return base64.b64decode(rest, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """The one byte range that is asked for, half-open; None for the whole."""
    unit, _, asked = header.partition("=")
    first, dash, last = asked.partition("-")
    if unit != "bytes" or not dash or not size:
        return None
    if first.isdecimal() and (not last or last.isdecimal()):
        start, stop = int(first), min(int(last) + 1, size) if last else size
    elif not first and last.isdecimal():
        start, stop = max(0, size - int(last)), size
    else:
        return None
    return (start, stop) if start < stop else None


def application(state: State) -> web.Application:
    """The routes."""
    given = {"state": state}
    return web.Application(
        [
            (r"/", PageHandler, {**given, "page": "list.html"}),
            (r"/replay/\d{1,20}/[0-9a-f]{32}", PageHandler, {**given, "page": "replay.html"}),
            (r"/operate", OperatorPageHandler, given),
            (r"/static/(.+)", StaticHandler, {"path": str(STATIC)}),
            (r"/api/projects", ProjectsHandler, given),
            (r"/api/replays", ReplaysHandler, given),
            (PATH, ReplayHandler, given),
            (PATH + r"/timeline", TimelineHandler, given),
            (PATH + r"/segments/(\d{1,18})", SegmentHandler, given),
            (PATH + r"/segments/(\d{1,18})/video", VideoHandler, given),
            (r"/api/operate", LookHandler, given),
            (r"/api/operate/batches/(retry|abandon)", BatchHandler, given),
            (r"/api/operate/letters", LettersHandler, given),
        ],
        default_handler_class=NothingHandler,
        default_handler_args=given,
        log_function=lambda handler: None,
    )


class NothingHandler(Handler):
    """Any other address."""

    def prepare(self) -> None:
        super().prepare()
        raise web.HTTPError(404, reason="there is nothing at this address")


async def serve(settings: Settings, port: int, ready: Callable[[str], None], stop: asyncio.Event) -> None:
    """Listens until `stop` is set; `ready` is called once with the address. Raises OSError (port in use)."""
    sockets = netutil.bind_sockets(port, HOST, family=socket.AF_INET)
    with ThreadPoolExecutor(THREADS, thread_name_prefix="web") as pool:
        state = State(settings, Reads(settings), Desk(settings), pool)
        server = httpserver.HTTPServer(application(state), max_body_size=BODY_BYTES_MAX)
        server.add_sockets(sockets)
        ready(f"http://{HOST}:{sockets[0].getsockname()[1]}")
        try:
            await stop.wait()
        finally:
            server.stop()
            await server.close_all_connections()
            state.reads.close()
            state.desk.close()


def run(settings: Settings, port: int, ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or Ctrl-C. Raises OSError when the port is taken."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await serve(settings, port, ready, stop)

    asyncio.run(main())
