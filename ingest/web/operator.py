"""The operator's page and its buttons: behind Flower's password, and a token where they change something."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from typing import Any

from tornado import web

from ingest.web.base import TOKEN_HEADER, Handler
from ingest.web.pages import STATIC


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
        given = credentials(self.request.headers.get("Authorization", ""))
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


def credentials(header: str) -> str:
    """`user:password` of a Basic authorisation, "" without one."""
    kind, _, rest = header.partition(" ")
    if kind.lower() != "basic":
        return ""
    try:
        return base64.b64decode(rest, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
