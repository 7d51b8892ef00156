"""`replays-ingest web` prints which login each address requires."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.kit.library import Library
from tests.kit.paths import ROOT
from tests.kit.web_pages import Client, signed_in

PASSWORD = "ann:a-long-password"
REQUIRED = "requires a user and password of REPLAYS_FLOWER_BASIC_AUTH"


@pytest.mark.parametrize(
    ("passwords", "options", "replays", "operators", "after_the_link"),
    [
        (
            PASSWORD,
            (),
            "this link signs in one browser, once; or sign in at the operator's page",
            f"{REQUIRED}; the link is not enough",
            401,
        ),
        ("", (), "this link signs in one browser, once", "after the link", 200),
        (PASSWORD, ("--no-login",), "requires no login", REQUIRED, 401),
        ("", ("--no-login",), "requires no login", REQUIRED, 403),
    ],
    ids=["link and passwords", "link only", "no login, passwords", "no login at all"],
)
def test_each_address_is_printed_with_the_login_it_requires(
    library: Library, passwords: str, options: tuple[str, ...], replays: str, operators: str, after_the_link: int
):
    """`web` prints beside each address which login it requires, and each link grants the access that the text
    states.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "ingest.cli", "web", "--port", "0", *options],
        stdout=subprocess.PIPE,
        env={**os.environ, **library.env, "REPLAYS_FLOWER_BASIC_AUTH": passwords},
        cwd=ROOT,
        text=True,
    )
    try:
        assert process.stdout is not None
        first, second = process.stdout.readline().rstrip(), process.stdout.readline().rstrip()
        link = first.removeprefix("replays").split()[0]
        address, _, path = link.partition("/login")
        client = signed_in(address, f"/login{path}") if path else Client(address.rstrip("/"))

        assert first == f"replays          {link}  ({replays})"
        assert second == f"operator's page  {client.address}/operate  ({operators})"
        assert client.get("/").status == 200
        assert client.get("/operate").status == after_the_link
    finally:
        process.terminate()
        process.wait(30)
