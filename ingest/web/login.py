"""Logins: the one-time link printed at startup, passwords from the settings, and sessions.

Every page and response requires a login. Opening the link starts a session, whose cookie is valid only for this
process. If REPLAYS_FLOWER_BASIC_AUTH is set, its logins work too, and the operator's page requires one of them, so
that the audit trail names a person. Failed attempts are throttled globally, because clients on the loopback
interface cannot be distinguished.
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
from tasks.sign_in import Throttle, credentials, is_known_login, users_of

SESSION_SECONDS = 12 * 3600
WEB_COMMAND = "replays-ingest web"
LOCAL_COMMAND = "replays-ingest local logs web"

log = structlog.get_logger("web")


class LoginMethod(StrEnum):
    """How a visitor logged in. OPEN: `--no-login`."""

    LINK = "link"
    PASSWORD = "password"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Visitor:
    """A logged-in visitor."""

    name: str
    way: LoginMethod


class Login:
    """Checks the login links, passwords and session cookies of one server. Methods that check credentials return
    a Visitor or None; those for links and passwords raise SignInThrottled.

    When a link has been used, `on_new_link` is called with the path of a new link, for another browser.
    `command`: the command that prints the links, for use in error messages.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        is_open: bool = False,
        on_new_link: Callable[[str], None] = lambda path: None,
        command: str = WEB_COMMAND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._people = users_of(settings.flower_basic_auth.get_secret_value())
        self.is_open = is_open
        self._on_new_link = on_new_link
        self._command = command
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._token = secrets.token_urlsafe(32)
        # Links have their own throttle: any site can make a browser open invalid links, and these attempts must
        # not delay logins with a password.
        self._links, self._passwords = Throttle(clock), Throttle(clock)

    @property
    def has_passwords(self) -> bool:
        return bool(self._people)

    @property
    def link_hint(self) -> str:
        """The part of an error message that names the command that prints the link."""
        of_a_stack = f" (`{LOCAL_COMMAND}`, if `local up` started it)" if self._command == WEB_COMMAND else ""
        return f"the latest link that `{self._command}` printed{of_a_stack}"

    @property
    def password_hint(self) -> str:
        """The part of an error message that offers a password login; empty if there are no passwords."""
        return ", or log in with a user and password of REPLAYS_FLOWER_BASIC_AUTH" if self._people else ""

    @property
    def link(self) -> str:
        """Path of the one-time link; without a token if the login is disabled."""
        return "/" if self.is_open else f"/login?token={self._token}"

    def visitor_from_link(self, token: str) -> Visitor | None:
        """Returns the visitor with this token. A correct token is never throttled, because it cannot be
        guessed."""
        if hmac.compare_digest(token.encode(), self._token.encode()):
            self._token = secrets.token_urlsafe(32)
            visitor = Visitor(_user_name(), LoginMethod.LINK)
            log.info("signed_in", way=str(visitor.way), user=visitor.name)
            self._on_new_link(self.link)
            return visitor
        self._links.raise_if_throttled()
        self._links.failed(LoginMethod.LINK)
        return None

    def visitor_from_password(self, header: str) -> Visitor | None:
        """Returns the visitor with a correct `Authorization: Basic` header."""
        login = credentials(header)
        if not login or not self._people:
            return None
        self._passwords.raise_if_throttled()
        if not is_known_login(login, self._people):
            self._passwords.failed(LoginMethod.PASSWORD)
            return None
        visitor = Visitor(login.partition(":")[0], LoginMethod.PASSWORD)
        log.info("signed_in", way=str(visitor.way), user=visitor.name)
        return visitor

    # Sessions

    def cookie(self, visitor: Visitor) -> str:
        """Returns the value of the session cookie for this visitor."""
        ends_at = self._clock() + SESSION_SECONDS
        name = visitor.name.encode().hex()
        content = f"{visitor.way}.{ends_at:.0f}.{secrets.token_urlsafe(16)}.{name}"
        return f"{content}.{self._signature(content)}"

    def visitor_from_cookie(self, cookie: str) -> Visitor | None:
        """Returns the visitor with this session. Invalid cookies do not count as failures, because they are
        usually left over from an earlier process.
        """
        content, _, proof = cookie.rpartition(".")
        if not hmac.compare_digest(proof.encode(), self._signature(content).encode()):
            return None
        way, ends_at, _, name = content.split(".")
        if self._clock() >= float(ends_at):
            return None
        return Visitor(bytes.fromhex(name).decode(), LoginMethod(way))

    def _signature(self, content: str) -> str:
        return hmac.new(self._secret, content.encode(), hashlib.sha256).hexdigest()


def _user_name() -> str:
    """Returns the name of the user who runs this process, for whom the link was printed."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "operator"
