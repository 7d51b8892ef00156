"""The shop page, the page that waits for a recording, and the shop's own requests.

Only a browser that opened the printed link may load these pages, because they lead to recordings. The login is
shared with the web pages, because a browser also sends their session cookie to this port.
"""

from __future__ import annotations

import asyncio
import html
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from tornado import web

from ingest.trial.endpoint.handler import Endpoint
from ingest.trial.sessions import Progress, Sessions
from ingest.web.login import SESSION_SECONDS, Login, Visitor
from ingest.web.reads import Reads
from tasks.sign_in import SignInThrottled

STATIC = Path(__file__).parent / "static"
KINDS = {".js": "text/javascript", ".css": "text/css", ".json": "application/json", ".txt": "text/plain"}
RELEASE = "kettle-and-leaf@1.0.0"
ITEMS = (
    {"id": "green", "name": "Green tea", "price": 8, "sign": "🍵", "colour": "#cfe8cf"},
    {"id": "black", "name": "Black tea", "price": 7, "sign": "🍂", "colour": "#f0dcc4"},
    {"id": "pot", "name": "Cast-iron pot", "price": 64, "sign": "🫖", "colour": "#d8dde8"},
    {"id": "cup", "name": "Two cups", "price": 21, "sign": "🥛", "colour": "#f6e3e6"},
)
# The SDK compresses in a web worker that it creates from a blob URL.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass
class Trial:
    """State of the pages. `web_address`: address of the replay pages; `cookie`: name of their session cookie.

    `ready` is called with the replay id of a session that is ready, possibly more than once.
    """

    endpoint: Endpoint
    sessions: Sessions
    reads: Reads
    login: Login
    names: frozenset[str]
    dsn: str
    web_address: str
    cookie: str
    ready: Callable[[str, Progress], None]


class Handler(web.RequestHandler):
    """Base class of all handlers: headers, the check of the host name, the login."""

    needs_login = True

    def initialize(self, trial: Trial) -> None:
        self.trial = trial

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")

    def prepare(self) -> None:
        if self.trial.names and self.request.host_name not in self.trial.names:
            raise web.HTTPError(421, reason="this server only accepts requests for 127.0.0.1 and localhost")
        if self.needs_login and self._visitor() is None:
            raise web.HTTPError(401, reason="open the link that replays-ingest try printed")

    def _visitor(self) -> Visitor | None:
        return self.trial.login.visitor_from_cookie(self.get_cookie(self.trial.cookie) or "")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        text = error.reason if isinstance(error, web.HTTPError) and error.reason else self._reason
        if isinstance(error, SignInThrottled):
            self.set_status(429)
            text = str(error)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{text}\n")

    def answer(self, value: Any) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(value))

    def page(self, name: str, **values: str) -> None:
        text = files()[name].read_text()
        for field, value in values.items():
            text = text.replace("{" + field + "}", html.escape(value, quote=True))
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(text)


class LoginHandler(Handler):
    """Serves the printed link: exchanges its token for a session, which is also valid for the replay pages."""

    needs_login = False

    def get(self) -> None:
        trial = self.trial
        visitor = trial.login.visitor_from_link(self.get_query_argument("token", "")[:200])
        if visitor is None:
            raise web.HTTPError(
                401, reason="this link is invalid or was used: open the latest link that was printed"
            )
        self.set_cookie(
            trial.cookie,
            trial.login.cookie(visitor),
            path="/",
            httponly=True,
            samesite="Strict",
            max_age=SESSION_SECONDS,
        )
        self.redirect("/", status=303)


class ShopHandler(Handler):
    """The shop page."""

    def get(self) -> None:
        self.page("shop.html", dsn=self.trial.dsn, release=RELEASE)


class StaticHandler(Handler):
    """Scripts and styles."""

    def get(self, name: str) -> None:
        path = files().get(name)
        if path is None or path.suffix not in KINDS:
            raise web.HTTPError(404, reason="not found")
        self.set_header("Content-Type", KINDS[path.suffix])
        self.finish(path.read_bytes())


class ItemsHandler(Handler):
    """Returns the products of the shop."""

    def get(self) -> None:
        self.set_header("X-Stock", str(len(ITEMS)))
        self.answer({"items": ITEMS})


class CartHandler(Handler):
    """Adds a product to the cart. The page keeps the cart; the response echoes the request."""

    def post(self) -> None:
        self.set_header("X-Stock", str(len(ITEMS)))
        try:
            self.answer({"added": json.loads(self.request.body[:10_000])})
        except (ValueError, RecursionError):
            raise web.HTTPError(400, reason="the body is not JSON") from None


class CheckoutHandler(Handler):
    """Always fails, so that the recording contains an error."""

    def post(self) -> None:
        self.set_status(503)
        self.answer({"error": "payment provider unavailable"})


class WatchHandler(Handler):
    """Serves the page that waits until a recording is stored."""

    def get(self, replay_id: str) -> None:
        project = str(self.trial.endpoint.project.project_id)
        self.page("watch.html", replay=replay_id, project=project, web=self.trial.web_address)


class ProgressHandler(Handler):
    """Returns the progress of a recording."""

    async def get(self, replay_id: str) -> None:
        trial = self.trial
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(None, trial.sessions.progress, replay_id, trial.reads)
        if found is None:
            raise web.HTTPError(404, reason="nothing of this replay was received")
        if found.ready_seconds is not None:
            trial.ready(replay_id, found)
        self.answer(msgspec.to_builtins(found))


class CountsHandler(Handler):
    """Returns the counters of the endpoint."""

    def get(self) -> None:
        self.answer(self.trial.endpoint.counts())


class NotFoundHandler(Handler):
    """Any other address."""

    needs_login = False

    def prepare(self) -> None:
        super().prepare()
        raise web.HTTPError(404, reason="not found")


@cache
def files() -> dict[str, Path]:
    """Returns the pages and all files that they use, by path below static/."""
    return {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.is_file()}
