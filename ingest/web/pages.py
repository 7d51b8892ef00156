"""Pages, scripts and styles from `static/`, and the login page."""

from __future__ import annotations

import html
import re
from functools import cache
from pathlib import Path
from typing import Any

from tornado import web

from ingest.web.base import NAVIGATION, Handler, State, policy

STATIC = Path(__file__).parent / "static"
# A name or address with an optional port, as in a URL. Other text is never added to the policy.
HOST = re.compile(r"(?:[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)
HOSTS_MAX = 50  # the same limit as in static/replay.js
KINDS = {".js": "text/javascript", ".css": "text/css", ".json": "application/json", ".txt": "text/plain"}
# The page for visitors who are not logged in. The page has no scripts or style sheets, because those require a
# login too.
REFUSED = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>replays-ingest</title><link rel="icon" href="data:,">
<body style="font: 16px/1.5 system-ui, sans-serif; margin: 4em auto; max-width: 40em">
<h1>replays-ingest</h1><p>{text}</p></body></html>
"""


class BrowserHandler(Handler):
    """Serves browsers, with errors as HTML pages."""

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        status, text = self.error_response(status_code, kwargs.get("exc_info", (None, None, None))[1])
        self.set_status(status)
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(REFUSED.format(text=html.escape(text)))


class LoginHandler(BrowserHandler):
    """Serves the one-time link: exchanges its token for a session."""

    destinations = frozenset((NAVIGATION,))

    def authenticate(self) -> None:
        """Admits every visitor, because none has a session yet."""

    def get(self) -> None:
        login = self.state.login
        if not login.is_open:
            visitor = login.visitor_from_link(self.text("token"))
            if visitor is None:
                where = f"{login.link_hint}{login.password_hint}"
                raise web.HTTPError(401, reason=f"this link is invalid or was used: open {where}")
            self.start_session(visitor)
        self.redirect("/", status=303)


class PageHandler(BrowserHandler):
    """Serves one of the static pages."""

    def initialize(self, state: State, page: str = "") -> None:
        super().initialize(state)
        self.page = page

    def get(self, *_: str) -> None:
        hosts = self.get_query_arguments("elsewhere")
        if hosts and self.request.headers.get("Sec-Fetch-Site") == "same-origin":
            # Applies only to links on our own pages, so that foreign links cannot enable it.
            if len(hosts) > HOSTS_MAX or not all(map(HOST.fullmatch, hosts)):
                raise web.HTTPError(400, reason=f"elsewhere must be at most {HOSTS_MAX} host names")
            self.set_header("Content-Security-Policy", policy(hosts))
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish((STATIC / self.page).read_bytes())


class StaticHandler(Handler):
    """Serves scripts and styles. Browsers revalidate them on each request and receive them only if they
    changed.
    """

    destinations = Handler.destinations | {"script", "style"}

    def get(self, name: str) -> None:
        path = files().get(name)
        if path is None:
            raise web.HTTPError(404, reason="not found")
        self.set_header("Content-Type", KINDS[path.suffix])
        self.set_header("Cache-Control", "no-cache")
        self.finish(path.read_bytes())


@cache
def files() -> dict[str, Path]:
    """Returns all static files, by name below /static/."""
    return {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.suffix in KINDS}
