"""Who is let in: the link that is printed at start, passwords from the settings, and the sessions that follow.

Every page and every answer is behind one login. The link holds a token that works once. Whoever opens it gets a
session: a cookie that only this process can make, so it ends with the process. Where REPLAYS_FLOWER_BASIC_AUTH is
set, its names and passwords let in too, and the operator's page wants one of them, so that the audit trail names a
person. Guesses are throttled for everyone together: on the loopback interface nobody can be told apart.
"""

from __future__ import annotations

import getpass
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import structlog

from ingest.settings import Settings
from tasks.sign_in import Throttle, credentials, is_one_of, people_of

SESSION_SECONDS = 12 * 3600

log = structlog.get_logger("web")


class Way(StrEnum):
    """How somebody was let in. OPEN: with `--no-login`, as everyone is."""

    LINK = "link"
    PASSWORD = "password"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who was let in."""

    name: str
    way: Way


class Login:
    """Methods that take what somebody gave return a Visitor, or None. They raise Throttled.

    `relinked` is called with the path of a new link when one was used, so that another browser can be let in.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        is_open: bool = False,
        relinked: Callable[[str], None] = lambda path: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._people = people_of(settings.flower_basic_auth.get_secret_value())
        self.is_open = is_open
        self._relinked = relinked
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._token = secrets.token_urlsafe(32)
        # Apart: any site can make a browser open wrong links, which must keep no password out.
        self._links, self._passwords = Throttle(clock), Throttle(clock)

    @property
    def has_passwords(self) -> bool:
        return bool(self._people)

    @property
    def link(self) -> str:
        """Path of the link that works once; without its token when no login is wanted."""
        return "/" if self.is_open else f"/login?token={self._token}"

    def by_link(self, token: str) -> Visitor | None:
        """Whoever has the token. A right one is never throttled: it cannot be guessed at any rate."""
        if hmac.compare_digest(token.encode(), self._token.encode()):
            self._token = secrets.token_urlsafe(32)
            visitor = Visitor(_own_name(), Way.LINK)
            log.info("signed_in", way=str(visitor.way), user=visitor.name)
            self._relinked(self.link)
            return visitor
        self._links.pass_or_raise()
        self._links.failed(Way.LINK)
        return None

    def by_password(self, header: str) -> Visitor | None:
        """Whoever sends `Authorization: Basic` with a name and its password."""
        given = credentials(header)
        if not given or not self._people:
            return None
        self._passwords.pass_or_raise()
        if not is_one_of(given, self._people):
            self._passwords.failed(Way.PASSWORD)
            return None
        visitor = Visitor(given.partition(":")[0], Way.PASSWORD)
        log.info("signed_in", way=str(visitor.way), user=visitor.name)
        return visitor

    # Sessions

    def cookie(self, visitor: Visitor) -> str:
        """The value of a session's cookie."""
        ends_at = self._clock() + SESSION_SECONDS
        name = visitor.name.encode().hex()
        content = f"{visitor.way}.{ends_at:.0f}.{secrets.token_urlsafe(16)}.{name}"
        return f"{content}.{self._proof(content)}"

    def by_cookie(self, cookie: str) -> Visitor | None:
        """Whoever has a session. Wrong ones are not counted: they are left over from an earlier process."""
        content, _, proof = cookie.rpartition(".")
        if not hmac.compare_digest(proof.encode(), self._proof(content).encode()):
            return None
        way, ends_at, _, name = content.split(".")
        if self._clock() >= float(ends_at):
            return None
        return Visitor(bytes.fromhex(name).decode(), Way(way))

    def _proof(self, content: str) -> str:
        return hmac.new(self._secret, content.encode(), hashlib.sha256).hexdigest()


def _own_name() -> str:
    """The login of whoever runs this process, which is where the link was printed."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "operator"
