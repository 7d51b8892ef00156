"""The operator's part of the pages: who gets in, and what the buttons do to batches and dead letters."""

from __future__ import annotations

import queue
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from confluent_kafka import Producer
from redis import Redis

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Batch, OffsetRange, Stage, TopicPartition
from ingest.local.fleet import isolated
from ingest.local.launch import settings_of
from ingest.local.servers.processes import wait_until
from ingest.local.stack import Stack
from ingest.operate.dlq import Selection, letters
from ingest.reader.dispatch import Dispatcher
from ingest.settings import Settings
from ingest.web.base import TOKEN_HEADER
from tasks.kafka.letters import Label, Origin
from tasks.migrate import migrate
from tasks.sinks import build
from tasks.wire import DeadLetter
from tests.kit.batches import batch_of, segment
from tests.kit.web_pages import Client, Seen, served

LOGIN = "ann:a-long-password"
DATABASE = 10


@dataclass(frozen=True)
class Office:
    """The pages for an operator, and the reader whose batches they show."""

    settings: Settings
    client: Client
    reader: Dispatcher
    inbox: queue.SimpleQueue[on.Event]

    def ask(self, path: str, body: object, **headers: str) -> Seen:
        """A request of the page's own: with its token."""
        token = str(self.client.get("/api/operate").json["token"])
        return self.client.post(path, body, **{TOKEN_HEADER: token}, **headers)

    def park(self, start: int, stop: int) -> Batch:
        """A batch of that range waits for its retry, and the page shows it."""
        source = TopicPartition(self.settings.kafka_topic, 0)
        batch = batch_of(
            [segment(offset) for offset in range(start, stop)], [], OffsetRange(start, stop), source=source
        )
        self.reader.submit(do.Park(batch, Stage.ROWS, 3, "clickhouse is away", 300.0))
        wait_until(lambda: batch.id in {one["batch_id"] for one in self.look()["parked"]}, 30, "the parked batch")
        wait_until(lambda: bool(self.look()["readers"]), 30, "the reader's heartbeat")
        return batch

    def look(self) -> dict[str, list[dict[str, str]]]:
        """What the page is told of the system."""
        found: dict[str, list[dict[str, str]]] = self.client.get("/api/operate").json
        return found


@pytest.fixture(scope="module")
def settings(stack: Stack) -> Settings:
    """A topic with five messages and no dead letter yet."""
    stack.start(["gcs", "clickhouse", "redis", "kafka"])
    names = isolated(f"office{uuid.uuid4().hex[:8]}", stack.addresses["redis"], DATABASE)
    given = {"REPLAYS_SINKS": "gcs,clickhouse,dead_letter", "REPLAYS_FLOWER_BASIC_AUTH": f"bob:other, {LOGIN}"}
    made = settings_of({**stack.settings(), **names, **given})
    Redis.from_url(made.redis_url.get_secret_value()).flushdb()
    for _ in migrate(made, topics=True):
        pass
    producer = Producer({"bootstrap.servers": made.kafka_brokers})
    for number in range(5):
        producer.produce(made.kafka_topic, b"message %d" % number, partition=0)
    assert producer.flush(20) == 0
    return made


@pytest.fixture
def office(settings: Settings) -> Iterator[Office]:
    """The pages are served, a reader lives; what was parked is forgotten afterwards."""
    inbox: queue.SimpleQueue[on.Event] = queue.SimpleQueue()
    reader = Dispatcher(settings, "reader-1", inbox)
    reader.start()
    with served(settings) as client:
        yield Office(settings, Client(client.address, LOGIN), reader, inbox)
    reader.stop(1.0)
    Redis.from_url(settings.redis_url.get_secret_value()).flushdb()


def letter(settings: Settings, offset: int, reason: str) -> None:
    """The message at that offset lies in the dead-letter topic."""
    label = Label(reason, "it never parses", Origin(settings.kafka_topic, 0, offset), "")
    sink = build("dead_letter", settings)
    try:
        sink.write([DeadLetter(None, b"message %d" % offset, label.encode(), offset)], f"letter-{offset}", 20)
    finally:
        sink.close()


@pytest.mark.parametrize("login", ["", "ann:wrong", "ann", "eve:a-long-password"])
def test_nobody_gets_in_without_flowers_password(office: Office, login: str):
    """Page, state and buttons; a browser is told to ask for it."""
    stranger = Client(office.client.address, login)

    for seen in (stranger.get("/operate"), stranger.get("/api/operate"), stranger.get("/api/operate/letters")):
        assert seen.status == 401
        assert seen.headers["WWW-Authenticate"].startswith('Basic realm="replays-ingest operator"')
    assert stranger.post("/api/operate/batches/retry", {"batch_id": "x"}).status == 401
    assert stranger.get("/").status == 200


def test_without_a_password_the_part_is_closed(settings: Settings):
    """403, which says what to set."""
    open_to_all = settings.model_copy(update={"flower_basic_auth": type(settings.flower_basic_auth)("")})
    with served(open_to_all) as client:
        page, look = client.get("/operate"), client.get("/api/operate")

    assert (page.status, look.status) == (403, 403)
    assert b"REPLAYS_FLOWER_BASIC_AUTH=user:password" in page.body
    assert "REPLAYS_FLOWER_BASIC_AUTH" in look.error


def test_an_operator_sees_page_and_state(office: Office):
    """Readers, sinks with their breakers, and who is asking; any of several passwords will do."""
    bob = Client(office.client.address, "bob:other")

    assert office.client.get("/operate").headers["Content-Type"].startswith("text/html")
    wait_until(lambda: [one["reader"] for one in office.look()["readers"]] == ["reader-1"], 30, "the reader")
    assert {sink["sink"] for sink in office.look()["sinks"]} >= {"gcs", "clickhouse", "dead_letter"}
    assert bob.get("/api/operate").json["user"] == "bob"


@pytest.mark.parametrize(
    "headers",
    [{}, {TOKEN_HEADER: "guessed"}, {"Sec_Fetch_Site": "cross-site"}],
    ids=["no token", "a wrong token", "another site"],
)
def test_another_sites_page_presses_no_button(office: Office, headers: dict[str, str]):
    """The browser sends the password along; the token it cannot know, and the browser says who asks."""
    if "Sec_Fetch_Site" in headers:
        seen = office.ask("/api/operate/batches/retry", {"batch_id": "x"}, **headers)
    else:
        seen = office.client.post("/api/operate/batches/retry", {"batch_id": "x"}, **headers)

    assert seen.status == 403
    assert "does not come from the operator's page" in seen.error


def test_a_parked_batch_is_retried(office: Office):
    """Its reader hears of it; the page shows error and deed."""
    batch = office.park(0, 2)

    seen = office.ask("/api/operate/batches/retry", {"batch_id": batch.id})

    assert seen.json == {"said": f"reader-1 was asked to retry {batch.id}"}
    assert office.inbox.get(timeout=30) == on.RetryRequested(batch.id)
    (parked,) = office.look()["parked"]
    assert parked["error"] == "clickhouse is away"
    assert batch.id in parked["flower"].replace("%3A", ":")
    deed = office.look()["deeds"][0]
    assert (deed["what"], deed["by"], deed["batch_id"]) == ("retry", "ann", batch.id)


def test_a_parked_batch_is_given_up_with_a_reason(office: Office):
    """Its messages are dead letters before its reader hears of it."""
    batch = office.park(1, 3)

    refused = office.ask("/api/operate/batches/abandon", {"batch_id": batch.id, "reason": " "})
    seen = office.ask("/api/operate/batches/abandon", {"batch_id": batch.id, "reason": "the table is gone"})

    assert (refused.status, refused.error.split(":")[0]) == (400, "say why")
    assert seen.json["said"] == f"{batch.id} is abandoned: 2 messages are dead letters, 0 were gone from the topic"
    assert office.inbox.get(timeout=30) == on.BatchAbandoned(batch.id, OffsetRange(1, 3), "the table is gone")
    written = [one for one in letters(office.settings, Selection()) if one.label.batch_id == batch.id]
    assert [one.value for one in written] == [b"message 1", b"message 2"]


def test_what_is_not_parked_cannot_be_operated(office: Office):
    """404 for no such batch, 409 when nobody is there to be asked."""
    unknown = {"batch_id": "recordings-0-0-3", "reason": "why not"}
    lost = office.park(3, 5)
    client = Redis.from_url(office.settings.redis_url.get_secret_value())

    assert office.ask("/api/operate/batches/retry", unknown).status == 404
    assert office.ask("/api/operate/batches/abandon", unknown).status == 404
    office.reader.stop(1.0)
    client.hdel("replays:readers", "reader-1")
    for what in ("retry", "abandon"):
        seen = office.ask(f"/api/operate/batches/{what}", {"batch_id": lost.id, "reason": "why not"})
        assert (seen.status, "reader-1" in seen.error) == (409, True)


def test_dead_letters_are_listed_and_replayed_once(office: Office):
    """Counted by reason; replayed ones are hidden unless asked for; it is in the audit trail."""
    letter(office.settings, 4, "not_msgpack")
    listed = office.client.get("/api/operate/letters").json
    (mine,) = [one for one in listed["letters"] if one["reason"] == "not_msgpack"]

    seen = office.ask("/api/operate/letters", {"ids": [mine["id"]]}).json

    assert {"reason": "not_msgpack", "sink": "", "count": 1} in listed["counts"]
    assert (seen["produced"], seen["failed"]) == (1, [])
    assert [one["id"] for one in seen["outcomes"]] == [mine["id"]]
    left = office.client.get("/api/operate/letters").json
    everything = office.client.get("/api/operate/letters?replayed=1").json
    assert mine["id"] not in {one["id"] for one in left["letters"]}
    assert {one["id"]: one["replayed"] for one in everything["letters"]}[mine["id"]] is True
    assert office.look()["deeds"][0]["what"] == "dlq_replay"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"not json", "a JSON object was expected"),
        ([], "a JSON object was expected"),
        ({"ids": "0-1"}, "ids must be a list of letter ids"),
        ({"ids": [1]}, "ids must be a list of letter ids"),
        ({"ids": []}, "choose 1 to 200 letters"),
    ],
)
def test_a_wrong_request_is_refused(office: Office, body: object, said: str):
    """400, and what would be right."""
    seen = office.ask("/api/operate/letters", body)

    assert (seen.status, seen.error) == (400, said)


def test_servers_that_are_away_are_named(settings: Settings):
    """503 of Redis for the state, of the broker for letters."""
    away = settings.model_copy(
        update={
            "redis_url": type(settings.redis_url)("redis://127.0.0.1:1/0"),
            "kafka_brokers": "127.0.0.1:1",
            "sink_timeout_seconds": 1.0,
        }
    )
    with served(away) as client:
        operator = Client(client.address, LOGIN)
        look, listed = operator.get("/api/operate"), operator.get("/api/operate/letters")

    assert (look.status, listed.status) == (503, 503)
    assert look.error.startswith("redis does not answer")
    assert listed.error
