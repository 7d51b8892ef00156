"""Tests the operator part of the pages: authentication, and what the buttons do to batches and dead letters."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from pydantic import SecretStr

from ingest.core import events as on
from ingest.core.model import OffsetRange
from ingest.local.servers.processes import wait_until
from ingest.operate.dlq import Selection, letters
from ingest.settings import Settings
from ingest.web.base import TOKEN_HEADER
from tasks.sign_in import WRONG_LOGIN
from tests.kit.operator_system import READER, OperatorSystem
from tests.kit.web_pages import Client, SeenResponse, running, served

LOGIN = "ann:a-long-password"


@dataclass(frozen=True)
class Pages:
    """The pages of a server, as an operator uses them."""

    operator_system: OperatorSystem
    client: Client

    def ask(self, path: str, body: object, **headers: str) -> SeenResponse:
        """Sends a request with the token of the page, as the page does."""
        token = str(self.client.get("/api/operate").json["token"])
        return self.client.post(path, body, **{TOKEN_HEADER: token}, **headers)

    def look(self) -> dict[str, list[dict[str, str]]]:
        """Returns the system state that the page receives from the server."""
        found: dict[str, list[dict[str, str]]] = self.client.get("/api/operate").json
        return found


@pytest.fixture
def pages(operator_system: OperatorSystem) -> Iterator[Pages]:
    with served(operator_system.settings) as client:
        yield Pages(operator_system, Client(client.address, LOGIN))


@pytest.mark.parametrize("login", ["", "ann:wrong", "ann", "eve:a-long-password"])
def test_flowers_password_is_required(pages: Pages, login: str):
    """The page, the state and the buttons require a password, and the response makes a browser prompt for a
    password. After a wrong password, the response names the setting that contains the valid passwords.
    """
    stranger = Client(pages.client.address, login)

    page, look, letters = map(stranger.get, ("/operate", "/api/operate", "/api/operate/letters"))
    assert look.error == (f"wrong user or password: {WRONG_LOGIN}" if login else "requires a Flower login")
    for seen in (page, look, letters):
        assert seen.status == 401
        assert seen.headers["WWW-Authenticate"].startswith('Basic realm="replays-ingest operator"')
    assert stranger.post("/api/operate/batches/retry", {"batch_id": "x"}).status == 401
    assert stranger.get("/").status == 401


def test_with_passwords_the_link_alone_is_not_enough(operator_settings: Settings):
    """If passwords are configured, the link alone is not sufficient, because the audit trail must name a person.

    The password gives access to everything.
    """
    with served(operator_settings) as client:
        seen, page = client.get("/api/operate"), client.get("/")
        ann = Client(client.address, LOGIN).get("/")

    assert (seen.status, page.status, ann.status) == (401, 200, 200)
    assert seen.error == "requires a Flower login"


def test_without_a_password_the_link_is_enough(operator_settings: Settings):
    """Without a password the link is sufficient, and the user who started the server counts as the operator."""
    plain = operator_settings.model_copy(update={"flower_basic_auth": SecretStr("")})
    with served(plain) as client:
        look, stranger = client.get("/api/operate"), Client(client.address).get("/api/operate")

    assert (look.status, look.json["user"]) == (200, getpass.getuser())
    assert (stranger.status, stranger.headers["WWW-Authenticate"]) == (401, None)


def test_without_any_login_the_operator_part_is_disabled(operator_settings: Settings):
    """If no login is configured, the operator part is disabled, and the 403 response names the setting that
    enables it.
    """
    plain = operator_settings.model_copy(update={"flower_basic_auth": SecretStr("")})
    with running(plain, login=False) as announced:
        client = Client(announced.get(timeout=30)[0])
        page, look, listed = client.get("/operate"), client.get("/api/operate"), client.get("/")

    assert (page.status, look.status, listed.status) == (403, 403, 200)
    assert b"REPLAYS_FLOWER_BASIC_AUTH=user:password" in page.body
    assert "REPLAYS_FLOWER_BASIC_AUTH" in look.error


def test_an_operator_sees_page_and_state(pages: Pages):
    """An operator who logs in with any of the configured passwords sees the page. Its state contains the readers,
    the sinks, the breakers and the user's name.
    """
    bob = Client(pages.client.address, "bob:other")

    assert pages.client.get("/operate").headers["Content-Type"].startswith("text/html")
    wait_until(lambda: [one["reader"] for one in pages.look()["readers"]] == [READER], 30, "the reader")
    assert {sink["sink"] for sink in pages.look()["sinks"]} >= {"gcs", "clickhouse", "dead_letter"}
    assert bob.get("/api/operate").json["user"] == "bob"


@pytest.mark.parametrize(
    "headers",
    [{}, {TOKEN_HEADER: "guessed"}, {"Sec_Fetch_Site": "cross-site"}],
    ids=["no token", "a wrong token", "another site"],
)
def test_another_site_cannot_press_a_button(pages: Pages, headers: dict[str, str]):
    """Another site cannot trigger an action: the browser sends the password automatically, but it also sends the
    origin, and the site has no token.
    """
    if "Sec_Fetch_Site" in headers:
        seen = pages.ask("/api/operate/batches/retry", {"batch_id": "x"}, **headers)
    else:
        seen = pages.client.post("/api/operate/batches/retry", {"batch_id": "x"}, **headers)

    assert seen.status == 403
    assert "does not come from" in seen.error


def test_a_parked_batch_is_retried(pages: Pages):
    """When a parked batch is retried, its reader is notified, and the page shows the error and the action."""
    batch = pages.operator_system.park(0, 2)

    seen = pages.ask("/api/operate/batches/retry", {"batch_id": batch.id})

    assert seen.json == {"said": f"{READER} was asked to retry {batch.id}"}
    assert pages.operator_system.next_event() == on.RetryRequested(batch.id)
    (parked,) = pages.look()["parked"]
    assert parked["error"] == "clickhouse is away"
    assert batch.id in parked["flower"].replace("%3A", ":")
    action = pages.look()["deeds"][0]
    assert (action["what"], action["by"], action["batch_id"]) == ("retry", "ann", batch.id)


def test_a_parked_batch_is_abandoned_with_a_reason(pages: Pages):
    """When a batch is abandoned with a reason, its messages become dead letters before its reader is notified."""
    batch = pages.operator_system.park(1, 3)

    refused = pages.ask("/api/operate/batches/abandon", {"batch_id": batch.id, "reason": " "})
    seen = pages.ask("/api/operate/batches/abandon", {"batch_id": batch.id, "reason": "the table is gone"})

    assert (refused.status, refused.error.split(",")[0]) == (400, "a reason is required")
    assert (
        seen.json["said"] == f"{batch.id} is abandoned: 2 messages are dead letters, 0 had expired from the topic"
    )
    assert pages.operator_system.next_event() == on.BatchAbandoned(
        batch.id, OffsetRange(1, 3), "the table is gone"
    )
    written = [
        one for one in letters(pages.operator_system.settings, Selection()) if one.label.batch_id == batch.id
    ]
    assert [one.value for one in written] == [b"message 1", b"message 2"]


def test_several_batches_are_retried_or_abandoned_with_one_reason(pages: Pages):
    """Retrying several batches writes one audit entry.

    The response lists the batches that are not parked; all other batches are retried.
    """
    first, second = pages.operator_system.park(0, 1), pages.operator_system.park(1, 2)
    ids = [first.id, second.id, "recordings-0-7-9"]

    refused = pages.ask("/api/operate/batches/retry", {"batch_ids": ids, "reason": ""})
    retried = pages.ask("/api/operate/batches/retry", {"batch_ids": ids, "reason": "it is back"}).json
    events = {pages.operator_system.next_event() for _ in range(2)}
    abandoned = pages.ask("/api/operate/batches/abandon", {"batch_ids": [first.id], "reason": "old schema"}).json

    assert (refused.status, refused.error) == (400, "a reason is required, to explain the action later")
    assert (retried["done"], list(retried["refused"])) == ([first.id, second.id], ["recordings-0-7-9"])
    assert events == {on.RetryRequested(first.id), on.RetryRequested(second.id)}
    assert (abandoned["done"], abandoned["refused"]) == ([first.id], {})
    assert pages.operator_system.next_event() == on.BatchAbandoned(first.id, OffsetRange(0, 1), "old schema")
    abandon, retry = pages.look()["deeds"][:2]
    assert (abandon["what"], abandon["reason"]) == ("abandon", "old schema")
    assert (retry["what"], retry["reason"], retry["batches"]) == ("retry", "it is back", "2")


def test_the_last_hour_is_shown_from_the_readers_heartbeats(pages: Pages):
    """The last value of the hour comes from the reader's heartbeat, and there are no values from before the reader
    started.
    """
    wait_until(
        lambda: (
            pages.client.get("/api/operate/trend").json["messages_per_second"][-1] is not None
            or pages.client.get("/api/operate/trend").json["messages_per_second"][-2] is not None
        ),
        30,
        "the reader's first heartbeat",
    )
    seen = pages.client.get("/api/operate/trend").json

    assert {len(seen[name]) for name in ("messages_per_second", "lag_messages", "delay_seconds")} == {120}
    assert seen["messages_per_second"][0] is None


def test_the_page_names_the_bottleneck_and_what_needs_attention(pages: Pages):
    """If no worker runs and a batch is parked, the page reports both problems, and the runbook has a section for
    each.
    """
    pages.operator_system.park(0, 1)
    look = pages.client.get("/api/operate").json
    runbook = pages.client.get("/runbook").body.decode()

    names = [one["name"] for one in look["alerts"]]
    assert set(names) >= {"ReplaysNobodyFlushes", "ReplaysBatchParked"}
    assert look["bottleneck"]["why"] == "no worker consumes its queue"
    for name in names:
        assert f'id="{name.lower()}"' in runbook


def test_dead_letters_are_filtered(pages: Pages):
    """Dead letters are filtered by reason and by a part of their content, which is shown as text."""
    pages.operator_system.add_dead_letter(2, "other_reason")

    def found(query: str) -> set[str]:
        seen = pages.client.get(f"/api/operate/letters?{query}").json
        assert seen["matching"] == len(seen["letters"])
        return {one["content"] for one in seen["letters"]}

    assert found("reason=other_reason&text=MESSAGE+2") == {"message 2"}
    assert found("reason=other_reason&text=nothing") == set()
    assert found("reason=other_reason&project=1") == set()


def test_a_batch_that_is_not_parked_cannot_be_operated(pages: Pages):
    """An action on an unknown batch gets 404, and an action on a batch without a running reader gets 409."""
    unknown = {"batch_id": "recordings-0-0-3", "reason": "why not"}
    lost = pages.operator_system.park(3, 5)

    assert pages.ask("/api/operate/batches/retry", unknown).status == 404
    assert pages.ask("/api/operate/batches/abandon", unknown).status == 404
    pages.operator_system.simulate_exit()
    for what in ("retry", "abandon"):
        seen = pages.ask(f"/api/operate/batches/{what}", {"batch_id": lost.id, "reason": "why not"})
        assert (seen.status, READER in seen.error) == (409, True)


def test_dead_letters_are_listed_and_replayed_once(pages: Pages):
    """Dead letters are counted by reason and replayed once.

    Replayed letters are hidden by default, and replaying letters is recorded in the audit trail.
    """
    pages.operator_system.add_dead_letter(4, "not_msgpack")
    listed = pages.client.get("/api/operate/letters").json
    (mine,) = [one for one in listed["letters"] if one["reason"] == "not_msgpack"]

    seen = pages.ask("/api/operate/letters", {"ids": [mine["id"]]}).json

    assert {"reason": "not_msgpack", "sink": "", "count": 1} in listed["counts"]
    assert (seen["produced"], seen["failed"]) == (1, [])
    assert [one["id"] for one in seen["outcomes"]] == [mine["id"]]
    left = pages.client.get("/api/operate/letters").json
    everything = pages.client.get("/api/operate/letters?replayed=1").json
    assert mine["id"] not in {one["id"] for one in left["letters"]}
    assert {one["id"]: one["replayed"] for one in everything["letters"]}[mine["id"]] is True
    assert pages.look()["deeds"][0]["what"] == "dlq_replay"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"not json", "a JSON object was expected"),
        ([], "a JSON object was expected"),
        ({"ids": "0-1"}, "ids must be a list of letter ids"),
        ({"ids": [1]}, "ids must be a list of letter ids"),
        ({"ids": []}, "select 1 to 200 letters"),
    ],
)
def test_a_wrong_request_is_refused(pages: Pages, body: object, said: str):
    """An invalid request gets a 400 response with a valid example."""
    seen = pages.ask("/api/operate/letters", body)

    assert (seen.status, seen.error) == (400, said)


def test_unavailable_servers_are_named(operator_settings: Settings):
    """If a server is unavailable, the 503 response names it: Redis for the state, and the broker for dead
    letters.
    """
    away = operator_settings.model_copy(
        update={
            "redis_url": SecretStr("redis://127.0.0.1:1/0"),
            "kafka_brokers": "127.0.0.1:1",
            "sink_timeout_seconds": 1.0,
        }
    )
    with served(away) as client:
        operator = Client(client.address, LOGIN)
        look, listed = operator.get("/api/operate"), operator.get("/api/operate/letters")

    assert (look.status, listed.status) == (503, 503)
    assert look.error.startswith("redis: does not respond: ")
    assert listed.error
