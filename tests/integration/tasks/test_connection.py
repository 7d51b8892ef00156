"""Tests Redis responses that mean "unavailable", each from a real server in that state, and kinds of servers that
are refused.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis import Redis as Client
from redis.exceptions import OutOfMemoryError

from ingest.local.servers.processes import Children, free_port, wait_until
from ingest.local.servers.redis import Redis
from ingest.observe.fleet import FleetWatch
from ingest.observe.metrics import Metrics
from ingest.settings import Settings
from tasks.broker import Channel
from tasks.chord import publisher
from tasks.connection import RedisUnavailable, connect
from tests.kit.fleet import Fleet
from tests.kit.paths import ROOT
from tests.kit.prestarted import PARENTS


@contextmanager
def demoted_primary(admin: Any) -> Iterator[None]:
    """Turns the server into a replica without a primary, which keeps its connections open and accepts no
    writes.
    """
    admin.replicaof("127.0.0.1", free_port())
    yield
    admin.replicaof("NO", "ONE")


@contextmanager
def without_stale_data(admin: Any) -> Iterator[None]:
    """Turns the server into a replica that lost its primary and refuses every read."""
    admin.config_set("replica-serve-stale-data", "no")
    with demoted_primary(admin):
        yield


@contextmanager
def primary_without_replica(admin: Any) -> Iterator[None]:
    """Makes the server refuse writes, by requiring a replica while the server has none."""
    admin.config_set("min-replicas-to-write", "1")
    yield
    admin.config_set("min-replicas-to-write", "0")


@contextmanager
def failed_snapshot(admin: Any) -> Iterator[None]:
    """Makes the server's snapshot fail."""
    admin.config_set("save", "3600 1")
    in_the_way = Path(admin.config_get("dir")["dir"]) / "dump.rdb"
    in_the_way.mkdir()
    admin.bgsave()
    wait_until(lambda: admin.info("persistence")["rdb_last_bgsave_status"] == "err", 10, "the snapshot to fail")
    yield
    in_the_way.rmdir()
    admin.config_set("save", "")


@contextmanager
def endless_script(admin: Any) -> Iterator[None]:
    """Runs an endless script in the server."""
    admin.config_set("busy-reply-threshold", "10")
    runner = Client.from_url(f"redis://127.0.0.1:{admin.connection_pool.connection_kwargs['port']}/0")
    thread = threading.Thread(target=lambda: _quietly(lambda: runner.eval("while true do end", 0)))
    thread.start()
    wait_until(lambda: "BUSY" in _text(admin.get, "x"), 10, "the script to be busy")
    yield
    admin.script_kill()
    thread.join()


def _quietly(call: Callable[[], Any]) -> None:
    _text(call)


def _text(call: Callable[..., Any], *arguments: Any) -> str:
    try:
        return str(call(*arguments))
    except Exception as error:
        return f"{error} {getattr(error, 'status_code', '')}"


WRITE: Callable[[Any], Any] = lambda client: client.set("replays:x", 1)  # noqa: E731
STATES: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "READONLY": (demoted_primary, WRITE),
    "READONLY in a script": (
        demoted_primary,
        lambda client: client.eval("return redis.call('SET', KEYS[1], 1)", 1, "x"),
    ),
    "READONLY in a transaction": (demoted_primary, lambda client: client.pipeline().set("x", 1).execute()),
    "READONLY in a pipeline": (
        demoted_primary,
        lambda client: client.pipeline(transaction=False).set("x", 1).execute(),
    ),
    "MASTERDOWN": (without_stale_data, lambda client: client.get("replays:x")),
    "NOREPLICAS": (primary_without_replica, WRITE),
    "MISCONF": (failed_snapshot, WRITE),
    "BUSY": (endless_script, lambda client: client.get("replays:x")),
}


@pytest.mark.parametrize("state", STATES)
def test_an_unavailable_server_closes_connections_until_it_recovers(fleet: Fleet, state: str) -> None:
    """While a server is unavailable, its connections are closed; after it has recovered, new connections are
    opened.
    """
    sick, call = STATES[state]
    client: Any = connect(fleet.settings, retries=0)
    reading: Any = connect(fleet.settings, retries=0)
    before, reading_before = client.client_id(), reading.client_id()

    with sick(fleet.client), pytest.raises(RedisUnavailable, match=state.partition(" ")[0]):
        call(client)
    call(client)

    assert client.client_id() != before
    assert reading.client_id() != reading_before


def test_a_blocking_call_on_a_demoted_primary_means_unavailable(fleet: Fleet) -> None:
    """If the primary is demoted during a blocking call, the response UNBLOCKED counts as unavailable, not as a
    result.
    """
    client: Any = connect(fleet.settings, retries=0)
    found: list[BaseException] = []

    def wait() -> None:
        try:
            client.blpop("replays:nothing", 1.5)
        except RedisUnavailable as error:
            found.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: fleet.client.info("clients")["blocked_clients"] == 1, 10, "the call to block")
    with demoted_primary(fleet.client):
        thread.join()

    assert [str(each).split()[0] for each in found] == ["UNBLOCKED"]


def test_a_full_server_counts_as_available(fleet: Fleet) -> None:
    """A full server counts as available: it refuses writes, but the client stays connected and ready."""
    client: Any = connect(fleet.settings, retries=0)
    before = client.client_id()
    watch = FleetWatch(fleet.settings, Metrics(fleet.settings))

    fleet.client.config_set("maxmemory", 1)
    with pytest.raises(OutOfMemoryError):
        client.set("replays:x", 1)
    watch.check()

    assert client.client_id() == before
    assert watch.dependencies() == {"redis": ""}


def test_a_read_only_primary_is_not_ready(fleet: Fleet) -> None:
    """While the primary is read-only, the reader is not ready; it is ready again once the primary accepts
    writes.
    """
    metrics = Metrics(fleet.settings)
    watch = FleetWatch(fleet.settings, metrics)
    watch.check()
    before = watch.dependencies()["redis"]

    with demoted_primary(fleet.client):
        watch.check()
        meanwhile, up = watch.dependencies()["redis"], metrics.total("replays.reader.redis_up")
    watch.check()

    assert before == ""
    assert "READONLY" in meanwhile
    assert up == 0
    assert watch.dependencies() == {"redis": ""}
    assert 0 < fleet.client.ttl("replays:probe") <= 60


def test_celery_opens_no_channel_to_a_replica(fleet: Fleet) -> None:
    """If Redis is a replica, Celery opens no channel and raises a connection error."""
    connection = publisher(fleet.settings).connection_for_write()

    with demoted_primary(fleet.client), pytest.raises(RedisUnavailable) as refused:
        connection.channel()

    assert isinstance(refused.value, connection.connection_errors)
    assert isinstance(connection.channel(), Channel)
    connection.release()


@pytest.mark.parametrize("finish", ["ack", "reject", "requeue"])
def test_a_message_whose_acknowledgement_fails_does_not_stop_its_consumer(fleet: Fleet, finish: str) -> None:
    """If Redis refuses an acknowledgement, a consumer with a prefetch count of one still gets the next message."""
    with publisher(fleet.settings).connection_for_write() as connection:
        channel = connection.channel()
        channel.basic_qos(0, 1, False)
        queue = connection.SimpleQueue("acknowledgements", channel=channel)
        for body in ("first", "second"):
            queue.put(body)
        first = queue.get(timeout=10)

        with demoted_primary(fleet.client), pytest.raises(RedisUnavailable, match="READONLY"):
            first.ack() if finish == "ack" else first.reject(requeue=finish == "requeue")

        assert queue.get(timeout=10).payload == "second"
        unfinished = fleet.client.hgetall(channel.global_keyprefix + channel.unacked_key)
        # This message is delivered again after the visibility timeout.
        assert {*unfinished} >= {first.delivery_tag.encode()}


REFUSED = {
    "Redis Cluster": ("--cluster-enabled", "yes"),
    "Sentinel": ("--sentinel",),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("program", ["reader", "worker", "check"])
def test_a_server_of_the_wrong_kind_is_refused_in_one_line(
    children: Children, tmp_path: Path, kind: str, program: str
) -> None:
    """A server of the wrong kind is refused in one line that names its kind and the setting."""
    server = Redis(children, tmp_path / "redis", options=REFUSED[kind])
    if kind == "Sentinel":
        server = _Bare(children, tmp_path / "redis")
    server.start()
    celery = [sys.executable, "-m", "celery", "-A", "tasks", "worker"]
    ours = [sys.executable, "-m", "ingest.cli"]
    command = {"reader": ours, "worker": celery, "check": [*ours, "check", "--json"]}[program]

    environment = {"REPLAYS_REDIS_URL": server.address, "REPLAYS_SINKS": "dead_letter"}
    environment |= {"REPLAYS_SINK_TIMEOUT_SECONDS": "1"}  # `check` also looks for a broker, and there is none
    result = PARENTS.run(command, {**os.environ, **environment}, ROOT)

    assert result.exit_code == 2, result.stderr
    text = result.stdout if program == "check" else result.stderr
    (line,) = [line for line in text.splitlines() if kind in line]
    assert "REPLAYS_REDIS_URL" in line
    assert "Traceback" not in result.stderr


def test_a_reader_that_finds_a_cluster_later_is_not_ready(children: Children, tmp_path: Path) -> None:
    """If the server later turns out to be a cluster, the reader is not ready, and the readiness check reports the
    reason.
    """
    server = Redis(children, tmp_path / "redis", options=REFUSED["Redis Cluster"])
    server.start()
    settings = Settings(redis_url=SecretStr(server.address))
    watch = FleetWatch(settings, Metrics(settings))

    watch.check()

    assert "Redis Cluster, which is not supported" in watch.dependencies()["redis"]


class _Bare(Redis):
    """A Sentinel that monitors no primary."""

    def command(self) -> list[str]:
        file = self.directory / "sentinel.conf"
        file.write_text(f"port {self.port}\nbind 127.0.0.1\ndir {self.directory}\n")
        return [super().command()[0], str(file), "--sentinel"]


def test_settings_are_read_alike_by_reader_and_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reader and fleet read the settings in the same way, so their connections have the same options."""
    monkeypatch.setenv(
        "REPLAYS_REDIS_URL", "rediss://me:p%40ss@redis:6380/3?ssl_cert_reqs=none&health_check_interval=9"
    )
    settings = Settings()
    ours = connect(settings).connection_pool.connection_kwargs
    app = publisher(settings)
    backend = app.backend._get_pool().connection_kwargs
    link = app.conf.broker_transport_options["link"]
    broker = link.pool(0).connection_kwargs

    for name in (
        "host",
        "port",
        "db",
        "username",
        "password",
        "ssl_cert_reqs",
        "health_check_interval",
        "socket_timeout",
    ):
        assert ours[name] == backend[name] == broker[name], name
    assert (ours["db"], ours["password"], ours["ssl_cert_reqs"]) == (3, "p@ss", "none")
    assert "p@ss" not in repr(app.conf.broker_transport_options)
