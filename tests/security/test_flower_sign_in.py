"""Flower accepts the passwords of the `web` operator page, so it must not allow brute-force attacks either."""

from __future__ import annotations

import base64
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message

import pytest

from ingest.local.servers.base import answers_http
from ingest.local.servers.processes import Children, free_port, wait_until
from tasks.sign_in import FAILURES_BEFORE_DELAY
from tests.kit.paths import ROOT

PASSWORD = "operator:correct-hörse"
Ask = Callable[..., tuple[int, Message]]


@pytest.fixture
def ask(children: Children, redis_url: str) -> Ask:
    """A running Flower: `ask(password, cookie=...)` returns the status and the headers of Flower's first page."""
    port = free_port()
    names = {"REPLAYS_REDIS_URL": redis_url, "REPLAYS_FLOWER_PORT": str(port)}
    environment = os.environ | names | {"REPLAYS_FLOWER_BASIC_AUTH": PASSWORD}
    children.start("flower", [sys.executable, "-m", "ingest.cli", "flower"], env=environment, cwd=ROOT)
    address = f"http://127.0.0.1:{port}"
    wait_until(lambda: answers_http(f"{address}/healthcheck"), 60, "flower")

    def asked(password: str, path: str = "/workers", cookie: str = "") -> tuple[int, Message]:
        request = urllib.request.Request(address + path)
        request.add_header("Authorization", "Basic " + base64.b64encode(password.encode()).decode())
        request.add_header("Cookie", cookie)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=30) as answer:
                return answer.status, answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.headers

    return asked


def test_flowers_passwords_cannot_be_guessed_at_speed(ask: Ask):
    """Flower's passwords cannot be guessed quickly: after the first few attempts, no password is checked for a
    while.

    Existing sessions stay valid.
    """
    status, headers = ask(PASSWORD)
    cookie = "; ".join(part.partition(";")[0] for part in headers.get_all("Set-Cookie") or [])
    guesses = [
        ask(f"operator:guess-{number}", path)[0] for number in range(20) for path in ("/tasks", "/api/tasks")
    ]

    assert status == 200
    assert FAILURES_BEFORE_DELAY <= guesses.count(401) < FAILURES_BEFORE_DELAY + 5
    assert guesses.count(401) + guesses.count(429) == len(guesses)
    assert ask(PASSWORD)[0] == 429
    assert ask(PASSWORD, cookie=cookie)[0] == 200
    assert ask("operator:guess", cookie=cookie)[0] == 401


def test_flower_is_drawn_in_no_frame(ask: Ask):
    """Flower's pages, including error pages, cannot be framed by a page that tricks users into clicking Flower's
    buttons.
    """
    for password in (PASSWORD, "operator:gu\xe9ss"):
        _, headers = ask(password)
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Content-Security-Policy"] == "frame-ancestors 'none'"


def test_no_password_is_an_error_of_flowers(ask: Ask):
    """A password with non-ASCII characters causes no error, because our code compares bytes.

    Flower itself compares strings, which fails for such passwords.
    """
    assert ask("ö:é")[0] == 401
    assert ask(PASSWORD)[0] == 200
