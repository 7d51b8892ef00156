"""Who is let in: the link that is printed at start, passwords from the settings, and the sessions that follow.

Every page and every answer is behind one login. The link holds a token that works once. Whoever opens it gets a
session: a cookie that only this process can make, so it ends with the process. Where REPLAYS_FLOWER_BASIC_AUTH is
set, its names and passwords let in too, and the operator's page wants one of them, so that the audit trail names a
person. Guesses are throttled for everyone together: on the loopback interface nobody can be told apart.
"""

from __future__ import annotations

import base64
import binascii
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

SESSION_SECONDS = 12 * 3600
FREE_FAILURES = 5
DELAY_SECONDS_MIN, DELAY_SECONDS_MAX = 1.0, 60.0
FORGIVEN_SECONDS = 600.0

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


class Throttled(Exception):
    """Too many failures: nothing is checked before `seconds` have passed."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"{seconds:.0f} s")
        self.seconds = seconds


class Throttle:
    """A delay that doubles with each failure after the first few. It is counted, not slept."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._failed_at = 0.0
        self._refused = 0

    @property
    def delay_seconds(self) -> float:
        """How long after the last failure nothing is checked."""
        doubled = min(self._failures - FREE_FAILURES, 10)
        return 0.0 if doubled < 0 else min(DELAY_SECONDS_MAX, DELAY_SECONDS_MIN * 2.0**doubled)

    def pass_or_raise(self) -> None:
        """Returns when an attempt may be checked now. Raises Throttled."""
        now = self._clock()
        if now - self._failed_at >= FORGIVEN_SECONDS:
            self._failures = 0
        left = self._failed_at + self.delay_seconds - now
        if left > 0:
            self._refused += 1
            if self._refused == 1:  # one line per delay, however many attempts there are in it
                log.warning("sign_in_throttled", failures=self._failures, wait_seconds=round(left, 1))
            raise Throttled(left)

    def failed(self, way: Way) -> None:
        """One attempt was wrong."""
        self._failures += 1
        self._failed_at = self._clock()
        log.warning(
            "sign_in_refused",
            way=str(way),
            failures=self._failures,
            wait_seconds=self.delay_seconds,
            unchecked_since_last=self._refused,
        )
        self._refused = 0


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
        given = settings.flower_basic_auth.get_secret_value().split(",")
        self._people = [person.strip().encode() for person in given if person.strip()]
        self.is_open = is_open
        self._relinked = relinked
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._token = secrets.token_urlsafe(32)
        self.throttle = Throttle(clock)

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
        self.throttle.pass_or_raise()
        self.throttle.failed(Way.LINK)
        return None

    def by_password(self, header: str) -> Visitor | None:
        """Whoever sends `Authorization: Basic` with a name and its password."""
        given = credentials(header)
        if not given or not self._people:
            return None
        self.throttle.pass_or_raise()
        # All are compared, so that the time taken does not depend on which one it is.
        matches = [hmac.compare_digest(given.encode(), person) for person in self._people]
        if not any(matches):
            self.throttle.failed(Way.PASSWORD)
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


def credentials(header: str) -> str:
    """`user:password` of a Basic authorization, "" without one."""
    kind, _, rest = header.partition(" ")
    if kind.lower() != "basic":
        return ""
    try:
        return base64.b64decode(rest, validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


def _own_name() -> str:
    """The login of whoever runs this process, which is where the link was printed."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "operator"
