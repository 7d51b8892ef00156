"""The operator's page and its actions, which require the login and a token."""

from __future__ import annotations

import hmac
from typing import Any

import msgspec
from tornado import web

from ingest.web.base import TOKEN_HEADER, Handler, State, policy
from ingest.web.login import LoginMethod, Visitor
from ingest.web.operator_service import DeadLetterFilter
from ingest.web.pages import STATIC, BrowserHandler
from tasks.sign_in import WRONG_LOGIN

IDS_MAX = 1000
ID_CHARACTERS_MAX = 400
REASON_CHARACTERS_MAX = 1000


class OperatorHandler(Handler):
    """Requires a login, by password if passwords are set. Actions also require the token."""

    def may_access(self, visitor: Visitor) -> bool:
        return visitor.way is LoginMethod.PASSWORD or (
            visitor.way is LoginMethod.LINK and not self.state.login.has_passwords
        )

    def raise_unauthorized(self) -> None:
        if self.state.login.has_passwords and self.request.headers.get("Authorization"):
            raise web.HTTPError(401, reason=f"wrong user or password: {WRONG_LOGIN}")
        if self.state.login.has_passwords:
            raise web.HTTPError(401, reason="requires a Flower login")
        if self.state.login.is_open:
            raise web.HTTPError(
                403,
                reason="with --no-login, the operator's page requires a Flower login: set "
                "REPLAYS_FLOWER_BASIC_AUTH=user:password",
            )
        super().raise_unauthorized()

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
        """Returns a string field of the request body; "" if absent."""
        text = body.get(name, "")
        if not isinstance(text, str) or len(text) > characters_max:
            raise web.HTTPError(400, reason=f"{name} must be a text of at most {characters_max} characters")
        return text

    def ids_of(self, body: dict[str, Any], name: str) -> list[str]:
        """Returns a list of ids from the request body."""
        ids = body.get(name)
        if not isinstance(ids, list) or not all(
            isinstance(one, str) and len(one) <= ID_CHARACTERS_MAX for one in ids[:IDS_MAX]
        ):
            kind = "letter ids" if name == "ids" else "batch ids"
            raise web.HTTPError(400, reason=f"{name} must be a list of {kind}")
        return ids


class OperatorPageHandler(OperatorHandler, BrowserHandler):
    """Serves the operator's page and the runbook. Unlike a replay, these pages have no inline styles."""

    def initialize(self, state: State, page: str = "") -> None:
        super().initialize(state)
        self.page = page

    def get(self) -> None:
        self.set_header("Content-Security-Policy", policy().replace(" 'unsafe-inline'", ""))
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish((STATIC / self.page).read_bytes())


class OverviewHandler(OperatorHandler):
    """Returns the state of the system, and the token for the page's buttons."""

    async def get(self) -> None:
        found = await self.run(self.state.operator_service.overview)
        self.answer({**found, "token": self.state.token, "user": self.visitor.name})


class TrendHandler(OperatorHandler):
    """Returns the throughput, lag and delay for the last hour."""

    async def get(self) -> None:
        self.answer(await self.run(self.state.operator_service.trend))


class BatchHandler(OperatorHandler):
    """Retries or abandons one parked batch (`batch_id`) or several (`batch_ids`)."""

    async def post(self, what: str) -> None:
        body, service = self.body(), self.state.operator_service
        reason = self.text_of(body, "reason", REASON_CHARACTERS_MAX)
        if "batch_ids" in body:
            ids, by = self.ids_of(body, "batch_ids"), self.visitor.name
            work = service.retry_batches if what == "retry" else service.abandon_batches
            self.answer(await self.run(lambda: work(ids, reason, by)))
            return
        batch_id = self.text_of(body, "batch_id", ID_CHARACTERS_MAX)
        if what == "retry":
            said = await self.run(lambda: service.retry_batch(batch_id, self.visitor.name))
        else:
            said = await self.run(lambda: service.abandon_batch(batch_id, reason, self.visitor.name))
        self.answer({"said": said})


class DeadLettersHandler(OperatorHandler):
    """Lists dead letters, and replays selected letters."""

    async def get(self) -> None:
        chosen = DeadLetterFilter(
            **{name: self.text(name) for name in ("reason", "sink", "project", "text")},
            include_replayed=self.flag_argument("replayed"),
        )
        self.answer(await self.run(lambda: self.state.operator_service.dead_letters(chosen)))

    async def post(self) -> None:
        ids = self.ids_of(self.body(), "ids")
        self.answer(await self.run(lambda: self.state.operator_service.replay_letters(ids, self.visitor.name)))
