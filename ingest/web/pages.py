"""The pages themselves, their scripts and styles: files of `static/`."""

from __future__ import annotations

from pathlib import Path

from tornado import web

from ingest.web.base import HEADERS, NAMES, Handler, State

STATIC = Path(__file__).parent / "static"


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
