"""Checks logins against REPLAYS_FLOWER_BASIC_AUTH and delays attempts after wrong passwords, for Flower and `web`.

Flower and `web` share passwords, so both programs must throttle password guessing. The delay applies to all
clients together, because clients on the loopback interface cannot be distinguished.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import time
from collections.abc import Callable, Sequence

import structlog

PASSWORD_CHARACTERS_MIN = 8
FAILURES_BEFORE_DELAY = 5
DELAY_SECONDS_MIN, DELAY_SECONDS_MAX = 1.0, 60.0
FAILURES_RESET_SECONDS = 600.0

WRONG_LOGIN = "use a user:password pair from REPLAYS_FLOWER_BASIC_AUTH"
log = structlog.get_logger("sign_in")


class SignInThrottled(Exception):
    """Too many sign-in attempts have failed. For the next `seconds` seconds, attempts are refused without a check
    of the password.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many wrong attempts: try again in {seconds:.0f} s")
        self.seconds = seconds


class Throttle:
    """Computes a delay that doubles with each failure after the first few. It never sleeps."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._failed_at = 0.0
        self._refused = 0

    @property
    def delay_seconds(self) -> float:
        """Delay after the last failure."""
        doublings = min(self._failures - FAILURES_BEFORE_DELAY, 10)
        return 0.0 if doublings < 0 else min(DELAY_SECONDS_MAX, DELAY_SECONDS_MIN * 2.0**doublings)

    def raise_if_throttled(self) -> None:
        """Raises SignInThrottled unless an attempt may be checked now."""
        now = self._clock()
        if now - self._failed_at >= FAILURES_RESET_SECONDS:
            self._failures = 0
        left = self._failed_at + self.delay_seconds - now
        if left > 0:
            self._refused += 1
            if self._refused == 1:  # logs one line per delay, regardless of the number of attempts
                log.warning("sign_in_throttled", failures=self._failures, wait_seconds=round(left, 1))
            raise SignInThrottled(left)

    def failed(self, way: str) -> None:
        """Records a failed attempt. `way`: kind of login, for the log."""
        self._failures += 1
        self._failed_at = self._clock()
        log.warning(
            "sign_in_refused",
            way=way,
            failures=self._failures,
            wait_seconds=self.delay_seconds,
            unchecked_since_last=self._refused,
            what_to_do=WRONG_LOGIN,
        )
        self._refused = 0


def users_of(text: str) -> list[str]:
    """Returns the `user:password` entries of a comma-separated string."""
    return [part.strip() for part in text.split(",") if part.strip()]


def is_weak(person: str) -> bool:
    """Returns True if this `user:password` has no user, or too short a password."""
    user, _, password = person.partition(":")
    return not user or len(password) < PASSWORD_CHARACTERS_MIN


def credentials(header: str) -> str:
    """Returns the `user:password` from a Basic Authorization header; "" if the header contains none."""
    kind, _, rest = header.partition(" ")
    if kind.lower() != "basic":
        return ""
    try:
        return base64.b64decode(rest, validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


def is_known_login(login: str, people: Sequence[str]) -> bool:
    """Returns True if `login` is one of these logins. Compares `login` with all of them, in constant time."""
    fits = [hmac.compare_digest(login.encode(), person.encode()) for person in people]
    return any(fits)
