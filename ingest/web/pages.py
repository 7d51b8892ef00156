"""The pages themselves, their scripts and styles, which are the files of `static/`, and the login."""

from __future__ import annotations

import html
from functools import cache
from pathlib import Path
from typing import Any

from tornado import web

from ingest.web.base import Handler, State, policy

STATIC = Path(__file__).parent / "static"
KINDS = {".js": "text/javascript", ".css": "text/css", ".json": "application/json", ".txt": "text/plain"}
# For whoever may not see a page: no script, no style of ours, since those are behind the login too.
REFUSED = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>replays-ingest</title><link rel="icon" href="data:,">
<body style="font: 16px/1.5 system-ui, sans-serif; margin: 4em auto; max-width: 40em">
<h1>replays-ingest</h1><p>{text}</p></body></html>
"""


class BrowserHandler(Handler):
    """What a browser shows: errors are a page."""

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        status, text = self.trouble(status_code, kwargs.get("exc_info", (None, None, None))[1])
        self.set_status(status)
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(REFUSED.format(text=html.escape(text)))


class LoginHandler(BrowserHandler):
    """The link that is printed at start: its token is exchanged for a session."""

    def let_in(self) -> None:
        """Nobody is yet."""

    def get(self) -> None:
        login = self.state.login
        if not login.is_open:
            visitor = login.by_link(self.text("token"))
            if visitor is None:
                raise web.HTTPError(
                    401, reason="this link was used or is wrong: open the last one that replays-ingest web printed"
                )
            self.start_session(visitor)
        self.redirect("/", status=303)


class PageHandler(BrowserHandler):
    """One of the static pages."""

    def initialize(self, state: State, page: str = "") -> None:
        super().initialize(state)
        self.page = page

    def get(self, *_: str) -> None:
        if self.flag("elsewhere") and self.request.headers.get("Sec-Fetch-Site") == "same-origin":
            # Only a link on our own page says so: a link from elsewhere decides nothing for the viewer.
            self.set_header("Content-Security-Policy", policy(elsewhere=True))
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish((STATIC / self.page).read_bytes())


class StaticHandler(Handler):
    """Scripts and styles: asked for again each time, sent only when changed."""

    def get(self, name: str) -> None:
        path = files().get(name)
        if path is None:
            raise web.HTTPError(404, reason="there is nothing at this address")
        self.set_header("Content-Type", KINDS[path.suffix])
        self.set_header("Cache-Control", "no-cache")
        self.finish(path.read_bytes())


@cache
def files() -> dict[str, Path]:
    """All that may be asked for, by its name below /static/."""
    return {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.suffix in KINDS}
