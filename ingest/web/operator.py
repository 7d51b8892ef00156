"""The operator's page and its actions, which require the login and a token."""

from __future__ import annotations

import hmac
from typing import Any

import msgspec
from tornado import web

from ingest.web.base import TOKEN_HEADER, Handler
from ingest.web.login import LoginMethod, Visitor
from ingest.web.pages import STATIC, BrowserHandler

IDS_MAX = 1000
ID_CHARACTERS_MAX = 400
REASON_CHARACTERS_MAX = 1000


class OperatorHandler(Handler):
    """Requires a login: by password if passwords are set. Actions also require the token."""

    def is_enough(self, visitor: Visitor) -> bool:
        return visitor.way is LoginMethod.PASSWORD or (
            visitor.way is LoginMethod.LINK and not self.state.login.has_passwords
        )

    def refuse(self) -> None:
        if self.state.login.has_passwords:
            raise web.HTTPError(401, reason="requires a Flower login")
        if self.state.login.is_open:
            raise web.HTTPError(
                403,
                reason="with --no-login, the operator's page requires a Flower login: set "
                "REPLAYS_FLOWER_BASIC_AUTH=user:password",
            )
        super().refuse()

    def prepare(self) -> None:
        super().prepare()
        if self.request.method not in ("GET", "HEAD"):
            self._expect_own_page()

    def _expect_own_page(self) -> None:
        site = self.request.headers.get("Sec-Fetch-Site", "same-origin")
        token = self.request.headers.get(TOKEN_HEADER, "")
        if site != "same-origin" or not hmac.compare_digest(token.encode(), self.state.token.encode()):
            raise web.HTTPError(403, reason="this request does not come from the operator's page; reload it")
        kind = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise web.HTTPError(415, reason="the body must be application/json")

    def body(self) -> dict[str, Any]:
        try:
            found = msgspec.json.decode(self.request.body or b"{}")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise web.HTTPError(400, reason="a JSON object was expected")
        return found

    def text_of(self, body: dict[str, Any], name: str, characters_max: int) -> str:
        """A text of the body; "" if absent."""
        text = body.get(name, "")
        if not isinstance(text, str) or len(text) > characters_max:
            raise web.HTTPError(400, reason=f"{name} must be a text of at most {characters_max} characters")
        return text


class OperatorPageHandler(OperatorHandler, BrowserHandler):
    """The page itself."""

    def get(self) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish((STATIC / "operate.html").read_bytes())


class LookHandler(OperatorHandler):
    """The state of the system, and the token for its buttons."""

    async def get(self) -> None:
        found = await self.run(self.state.desk.look)
        self.answer({**found, "token": self.state.token, "user": self.visitor.name})


class BatchHandler(OperatorHandler):
    """Retry or abandon a parked batch."""

    async def post(self, what: str) -> None:
        body, desk = self.body(), self.state.desk
        batch_id = self.text_of(body, "batch_id", ID_CHARACTERS_MAX)
        reason = self.text_of(body, "reason", REASON_CHARACTERS_MAX)
        if what == "retry":
            said = await self.run(lambda: desk.retry_batch(batch_id, self.visitor.name))
        else:
            said = await self.run(lambda: desk.abandon_batch(batch_id, reason, self.visitor.name))
        self.answer({"said": said})


class LettersHandler(OperatorHandler):
    """Dead letters: the list, and replaying some of them."""

    async def get(self) -> None:
        replayed = self.flag("replayed")
        self.answer(await self.run(lambda: self.state.desk.dead_letters(include_replayed=replayed)))

    async def post(self) -> None:
        ids = self.body().get("ids")
        if not isinstance(ids, list) or not all(
            isinstance(one, str) and len(one) <= ID_CHARACTERS_MAX for one in ids[:IDS_MAX]
        ):
            raise web.HTTPError(400, reason="ids must be a list of letter ids")
        self.answer(await self.run(lambda: self.state.desk.replay_letters(ids, self.visitor.name)))
