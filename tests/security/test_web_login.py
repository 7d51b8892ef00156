"""Other users of the machine can reach the pages' port, but they see nothing and cannot guess a login."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import structlog.testing
from pydantic import SecretStr

from ingest.settings import Settings
from ingest.web.login import Login, LoginMethod, Visitor
from tasks.sign_in import (
    DELAY_SECONDS_MAX,
    FAILURES_BEFORE_DELAY,
    FAILURES_RESET_SECONDS,
    SignInThrottled,
    Throttle,
)
from tests.kit.prestarted import PARENTS
from tests.kit.web_pages import Client, running, signed_in

REPLAY = f"7/{'a' * 32}"
PATHS = (
    "/",
    f"/replay/{REPLAY}",
    "/operate",
    "/runbook",
    "/static/list.js",
    "/static/vendor/rrweb-player.js",
    "/api/projects",
    "/api/replays",
    f"/api/replays/{REPLAY}",
    f"/api/replays/{REPLAY}/timeline",
    f"/api/replays/{REPLAY}/segments/0",
    f"/api/replays/{REPLAY}/segments/0?raw=1",
    f"/api/replays/{REPLAY}/segments/0/video",
    "/api/operate",
    "/api/operate/letters",
    "/api/operate/trend",
    "/nowhere",
)
LOGIN = "ann:a-long-password"


@contextmanager
def pages(passwords: str = "", **options: bool) -> Iterator[tuple[str, list[str]]]:
    """Serves the web pages while the servers that the pages depend on are unavailable. Yields the pages' address
    and a list with the first printed login link; links printed later are appended on exit.
    """
    with running(Settings(flower_basic_auth=SecretStr(passwords)), **options) as announced:
        address, link = announced.get(timeout=30)
        links = [link]
        yield address, links
        while not announced.empty():
            links.append(announced.get()[1])


@pytest.mark.parametrize("passwords", ["", LOGIN])
def test_an_unauthenticated_visitor_sees_nothing(passwords: str):
    """An unauthenticated visitor gets no page, no script and no API response, and cannot find out from any address
    whether something exists.
    """
    with pages(passwords) as (address, _):
        visitor = Client(address)
        answers = {path: visitor.get(path).status for path in PATHS}
        posted = visitor.post("/api/operate/batches/retry", {"batch_id": "x"}).status
        forged = Client(address, cookie=f"replays_{address.rpartition(':')[2]}=link.9999999999.x.726f6f74.00")

        assert set(answers.values()) == {401}
        assert (posted, forged.get("/").status) == (401, 401)


@pytest.mark.parametrize("passwords", ["", LOGIN])
def test_a_refused_visitor_learns_how_to_sign_in(passwords: str):
    """A refused visitor sees which commands print the link and, if passwords are configured, that they are
    accepted.
    """
    with pages(passwords) as (address, _):
        refused = [Client(address).get(path).body.decode() for path in ("/", "/api/replays", "/login?token=wrong")]

    for text in refused:
        assert "`replays-ingest web` printed (`replays-ingest local logs web`, if `local up` started it)" in text
        assert ("a user and password of REPLAYS_FLOWER_BASIC_AUTH" in text) == bool(passwords)


def test_the_link_works_once_and_is_followed_by_another():
    """The link works once and is then replaced by a new one, so a used link, for example in a shell's history, is
    useless to others.
    """
    with pages() as (address, links):
        first = Client(address).get(links[0])
        again = Client(address).get(links[0])

        assert (first.status, first.headers["Location"], again.status) == (303, "/", 401)
        assert signed_in(address, links[0]).get("/").status == 401
    with pages() as (address, links):
        me = signed_in(address, links[0])
        assert [me.get(path).status for path in ("/", "/operate", "/static/list.js")] == [200, 200, 200]
    assert len(set(links)) == 2


def test_the_session_is_valid_for_this_server_only():
    """The session cookie is inaccessible to scripts and other sites, and is invalid once the process ends."""
    with pages() as (address, links):
        cookie = Client(address).get(links[0]).headers["Set-Cookie"]
        mine = cookie.partition(";")[0]
    with pages() as (address, _):
        name = f"replays_{address.rpartition(':')[2]}"
        other = Client(address, cookie=f"{name}={mine.partition('=')[2]}").get("/")

    flags = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= flags
    assert other.status == 401


def test_passwords_cannot_be_guessed_at_speed():
    """Passwords cannot be guessed quickly: after the first few attempts, no password is checked for a while, not
    even the right one.

    Existing sessions stay valid.
    """
    with structlog.testing.capture_logs() as logged, pages(LOGIN) as (address, links):
        inside = signed_in(address, links[0])
        guesses = [Client(address, f"ann:guess-{number}").get("/") for number in range(60)]
        right = Client(address, LOGIN).get("/")
        others = inside.get("/").status, Client(address).get("/").status

    checked = [seen for seen in guesses if seen.status == 401]
    refused = [seen for seen in guesses if seen.status == 429]
    assert FAILURES_BEFORE_DELAY <= len(checked) < FAILURES_BEFORE_DELAY + 5
    assert len(checked) + len(refused) == 60
    assert all(int(seen.headers["Retry-After"]) >= 1 for seen in refused)
    assert right.status == 429
    assert others == (200, 401)
    lines = [line["event"] for line in logged]
    assert lines.count("sign_in_refused") == len(checked)
    assert 1 <= lines.count("sign_in_throttled") <= 5
    assert "guess-" not in str(logged)


def test_a_wrong_link_is_throttled_and_the_right_one_never():
    """Attempts to guess the link are throttled, but the right link is never throttled; otherwise an attacker could
    lock everybody out.
    """
    with pages() as (address, links):
        guesses = [Client(address).get(f"/login?token=guess{number}").status for number in range(20)]

        assert guesses.count(429) >= 20 - FAILURES_BEFORE_DELAY - 3
        assert signed_in(address, links[0]).get("/").status == 200


def test_wrong_links_do_not_throttle_passwords():
    """Invalid login links do not throttle password logins, because another site can make a browser open any number
    of such links.
    """
    with pages(LOGIN) as (address, _):
        guesses = [Client(address).get(f"/login?token=guess{number}").status for number in range(20)]

        assert 429 in guesses
        assert Client(address, LOGIN).get("/operate").status == 200


def test_the_delay_doubles_up_to_a_minute_and_is_forgiven():
    """The delay doubles up to a minute and ends after a quiet period, as measured with a simulated clock."""
    now = [0.0]
    throttle = Throttle(lambda: now[0])
    delays = []
    for _ in range(FAILURES_BEFORE_DELAY + 10):
        throttle.raise_if_throttled()
        throttle.failed(LoginMethod.PASSWORD)
        delays.append(throttle.delay_seconds)
        if throttle.delay_seconds:
            with pytest.raises(SignInThrottled):
                throttle.raise_if_throttled()
        now[0] += throttle.delay_seconds

    assert delays[: FAILURES_BEFORE_DELAY + 3] == [0.0] * (FAILURES_BEFORE_DELAY - 1) + [1.0, 2.0, 4.0, 8.0]
    assert delays[-1] == DELAY_SECONDS_MAX
    now[0] += FAILURES_RESET_SECONDS
    throttle.raise_if_throttled()
    throttle.failed(LoginMethod.PASSWORD)
    assert throttle.delay_seconds == 0.0


def test_a_session_ends():
    """A session ends after half a day, as measured by the clock of the process."""
    now = [0.0]
    login = Login(Settings(), clock=lambda: now[0])
    cookie = login.cookie(Visitor("ann", LoginMethod.LINK))

    assert login.visitor_from_cookie(cookie) == Visitor("ann", LoginMethod.LINK)
    assert login.visitor_from_cookie(cookie.replace("link", "password", 1)) is None
    now[0] = 13 * 3600.0
    assert login.visitor_from_cookie(cookie) is None


@pytest.mark.parametrize(
    "host", ["rebound.example", "127.0.0.1.rebound.example", "localhost.rebound.example", "[::1]"]
)
def test_other_host_names_are_refused(host: str):
    """Requests with other host names are refused, so a page from a foreign host whose name resolves to this
    server's address gets no data, even with a session.
    """
    with pages() as (address, links):
        me = signed_in(address, links[0])

        assert {me.get(path, Host=host).status for path in (*PATHS, "/login")} == {421}


def test_login_is_disabled_only_by_the_option():
    """Only an explicit option disables the login; even then, a page from another site cannot read anything."""
    with pages(login=False) as (address, links):
        visitor = Client(address)

        assert (visitor.get("/").status, links) == (200, ["/"])
        assert visitor.get("/operate").status == 403
        assert visitor.get("/api/projects", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="cors").status == 403
        assert re.search("frame-ancestors 'none'", visitor.get("/").headers["Content-Security-Policy"])


@pytest.mark.parametrize("passwords", ["ann:", "ann", ":a-long-password", "ann:short", "ann:a-long,password"])
def test_the_pages_do_not_start_with_a_guessable_password(passwords: str):
    """The pages, like Flower, refuse a password that can be guessed or that contains a comma: a comma would split
    the password into two logins.
    """
    result = PARENTS.run(
        [sys.executable, "-m", "ingest.cli", "web", "--port", "0"],
        {**os.environ, "REPLAYS_FLOWER_BASIC_AUTH": passwords},
    )

    assert result.exit_code == 2
    assert "REPLAYS_FLOWER_BASIC_AUTH must be user:password" in result.stderr
    assert "a-long" not in result.stderr
