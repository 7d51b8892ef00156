"""Code shared by all handlers: state, headers, access control, errors as JSON.

Recordings contain untrusted pages. The content security policy, which the player's frame inherits, forbids foreign
scripts, styles and requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from tornado import web

from ingest.core.stored_recording import BlobError, UnpackedRecording
from ingest.settings import Settings
from ingest.web.login import SESSION_SECONDS, Login, LoginMethod, Visitor
from ingest.web.model import NotFound, ReadError, Replay, Segments
from ingest.web.operator_service import OperatorService, RequestRefused
from ingest.web.reads import Reads
from tasks.sign_in import SignInThrottled

LOCAL_HOST_NAMES = frozenset(("127.0.0.1", "localhost"))
KNOWN_REPLAYS_MAX = 64
KNOWN_REPLAY_SECONDS_MAX = 20.0
TOKEN_HEADER = "X-Replays-Token"
TEXT_CHARACTERS_MAX = 200
NUMBER_DIGITS_MAX = 20
HEAVY_REQUESTS_MAX = 2
SEND_SECONDS_MAX = 60.0

_HOST_DIRECTIVES = ("img-src", "style-src", "font-src", "media-src")
FETCH, NAVIGATION = "empty", "document"
"""Values of Sec-Fetch-Dest for requests of our scripts, and for an address opened in a tab."""


def policy(hosts: Sequence[str] = ()) -> str:
    """Returns the content security policy. Recorded pages may use inline styles, and data URLs for images and
    fonts. Recorded pages may also load images, styles, fonts and media from the servers in `hosts`, each a name
    with an optional port, but may not load, run or send anything else.
    """
    rules = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "data: blob:",
        "font-src": "data:",
        "media-src": "'self' data: blob:",
        "connect-src": "'self'",
        "frame-src": "'none'",
        "worker-src": "'none'",
        "object-src": "'none'",
        "form-action": "'none'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    if hosts:
        rules |= {name: f"{rules[name]} {' '.join(hosts)}" for name in _HOST_DIRECTIVES}
    return "; ".join(f"{name} {sources}" for name, sources in rules.items())


HEADERS = {
    "Content-Security-Policy": policy(),
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
T = TypeVar("T")


@dataclass
class State:
    """State shared by handlers. `known` caches the segments of recently viewed replays."""

    settings: Settings
    reads: Reads
    operator_service: OperatorService
    pool: ThreadPoolExecutor
    login: Login
    port: int
    # Maximum number of decompressed recordings in memory; further requests wait.
    heavy: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(HEAVY_REQUESTS_MAX))
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    known: OrderedDict[tuple[int, str], tuple[float, Replay, Segments]] = field(default_factory=OrderedDict)

    def find_replay(self, project_id: int, replay_id: str, *, fresh: bool = False) -> tuple[Replay, Segments]:
        """Returns a replay and its segments, cached for a few seconds unless `fresh`."""
        key = (project_id, replay_id)
        held = self.known.get(key)
        if held is None or fresh or time.monotonic() - held[0] > KNOWN_REPLAY_SECONDS_MAX:
            replay = self.reads.replay(replay_id, project_id)
            held = self.known[key] = (time.monotonic(), replay, self.reads.segments(replay))
            while len(self.known) > KNOWN_REPLAYS_MAX:
                with contextlib.suppress(KeyError):
                    self.known.popitem(last=False)
        return held[1], held[2]

    def recording(self, project_id: int, replay_id: str, segment_id: int) -> UnpackedRecording:
        """Returns one segment's recording. Raises NotFound, ReadError or BlobError."""
        _, segments = self.find_replay(project_id, replay_id)
        return self.reads.recording(segments, segment_id)


class Handler(web.RequestHandler):
    """Base class of all handlers: response headers, host name check, login, errors as JSON, work in threads."""

    state: State
    visitor: Visitor
    # The request destinations (Sec-Fetch-Dest) that are allowed. Without this check, a recording could make the
    # page load images, media and styles from this server with the viewer's session.
    destinations: ClassVar[frozenset[str]] = frozenset((FETCH, NAVIGATION))

    def initialize(self, state: State) -> None:
        self.state = state

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        for name, value in HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        self.require_own_host()
        self.authenticate()

    def require_own_host(self) -> None:
        """Refuses requests with another host name (DNS rebinding), from another origin, or issued by a
        recording."""
        if self.request.host_name not in LOCAL_HOST_NAMES:
            raise web.HTTPError(421, reason="this server only accepts requests for 127.0.0.1 and localhost")
        if (
            self.request.headers.get("Sec-Fetch-Site") == "cross-site"
            and self.request.headers.get("Sec-Fetch-Mode") != "navigate"
        ):
            raise web.HTTPError(403, reason="this request does not come from a page of this server")
        if self.request.headers.get("Sec-Fetch-Dest") not in (None, *self.destinations):  # None: not a browser
            raise web.HTTPError(403, reason="this address is not an image, style, frame or media file")

    def authenticate(self) -> None:
        """Identifies the visitor by a session, or by a password, which starts a session."""
        login = self.state.login
        visitor = (
            Visitor("", LoginMethod.OPEN)
            if login.is_open
            else login.visitor_from_cookie(self.get_cookie(self._cookie) or "")
        )
        if visitor is None or not self.may_access(visitor):
            by_password = login.visitor_from_password(self.request.headers.get("Authorization", ""))
            if by_password is not None:
                visitor = by_password
                self.start_session(visitor)
        if visitor is None or not self.may_access(visitor):
            self.raise_unauthorized()
        else:
            self.visitor = visitor

    def may_access(self, visitor: Visitor) -> bool:
        """Returns True if this visitor may use the handler."""
        return True

    def raise_unauthorized(self) -> None:
        """Raises HTTP error 401, whose reason phrase explains how to sign in."""
        login = self.state.login
        raise web.HTTPError(401, reason=f"sign in: open {login.link_hint}{login.password_hint}")

    def start_session(self, visitor: Visitor) -> None:
        self.set_cookie(
            self._cookie,
            self.state.login.cookie(visitor),
            path="/",
            httponly=True,
            samesite="Strict",
            max_age=SESSION_SECONDS,
        )

    @property
    def _cookie(self) -> str:
        """Cookie name with the port, because browsers share cookies between ports of a host."""
        return f"replays_{self.state.port}"

    async def run(self, work: Callable[[], T]) -> T:
        """Calls a function in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.state.pool, work)

    async def wait_until_sent(self) -> None:
        """Waits until the browser has received the response, and closes the connection on timeout."""
        connection: Any = self.request.connection
        try:
            async with asyncio.timeout(SEND_SECONDS_MAX):
                while connection.stream is not None and connection.stream.writing():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            connection.stream.close()

    def answer(self, value: Any) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(value))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Writes an error. Sets the headers again, because tornado has cleared them."""
        status, text = self.error_response(status_code, kwargs.get("exc_info", (None, None, None))[1])
        self.set_status(status)
        self.answer({"error": text})

    def error_response(self, status_code: int, error: BaseException | None) -> tuple[int, str]:
        """Returns the status and text of an error response. Sets its headers."""
        text = error.reason if isinstance(error, web.HTTPError) and error.reason else self._reason
        for kind, status in ((NotFound, 404), (BlobError, 422), (ReadError, 503)):
            if isinstance(error, kind):
                status_code, text = status, str(error)
        if isinstance(error, RequestRefused):
            status_code, text = error.status, str(error)
        if isinstance(error, SignInThrottled):
            status_code, text = 429, str(error)
            self.set_header("Retry-After", str(max(1, round(error.seconds + 0.5))))
        if status_code == 401 and self.state.login.has_passwords:
            self.set_header("WWW-Authenticate", 'Basic realm="replays-ingest operator", charset="UTF-8"')
        return status_code, text

    def log_exception(self, kind: Any, value: Any, trace: Any) -> None:
        """Logs a traceback only for errors that the page does not show."""
        if not isinstance(value, (NotFound, BlobError, ReadError, RequestRefused, SignInThrottled, web.HTTPError)):
            super().log_exception(kind, value, trace)

    def flag_argument(self, name: str) -> bool:
        return self.get_query_argument(name, "") in ("1", "true", "on")

    def number_argument(self, name: str, low: int, high: int) -> int | None:
        """Returns a numeric query argument; None if absent or empty. Other values cause a 400."""
        text = self.get_query_argument(name, "")
        if not text:
            return None
        if not is_number(text) or not low <= int(text) <= high:
            raise web.HTTPError(400, reason=f"{name} must be a number from {low} to {high}")
        return int(text)

    def text(self, name: str) -> str:
        """Returns a query argument as a string; "" if absent. A value longer than TEXT_CHARACTERS_MAX causes a
        400.
        """
        text: str = self.get_query_argument(name, "")
        if len(text) > TEXT_CHARACTERS_MAX:
            raise web.HTTPError(400, reason=f"{name} must have at most {TEXT_CHARACTERS_MAX} characters")
        return text


def is_number(text: str) -> bool:
    """Returns True for a string of decimal digits that is short enough to convert."""
    return text.isascii() and text.isdecimal() and len(text) <= NUMBER_DIGITS_MAX


class NotFoundHandler(Handler):
    """Responds with 404 to every path that no other handler serves."""

    def prepare(self) -> None:
        super().prepare()
        raise web.HTTPError(404, reason="not found")
