"""If Redis fails over under load, the reader and the workers continue, and every batch reaches the sinks."""

from __future__ import annotations

import base64
import json
import os
import socket
import socketserver
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Stage
from ingest.local.servers.base import answers_http
from ingest.local.servers.fault_proxy import FaultProxy
from ingest.local.servers.processes import HOST, Children, free_port
from ingest.local.servers.redis import Redis, send_command
from ingest.local.servers.sentinel import MASTER, RedisGroup, Sentinel
from ingest.local.servers.tls import TlsProxy, make_certificates
from ingest.observe.fleet import FleetWatch
from ingest.observe.metrics import Metrics
from ingest.operate import status
from ingest.settings import Settings
from tasks.chord import publisher
from tasks.connection import connect
from tests.kit.batches import make_batch
from tests.kit.fleet import Fleet
from tests.kit.paths import ROOT
from tests.kit.prestarted import PARENTS

BATCHES = 12
SHORT_TIMEOUTS = {"FLUSH_DEADLINE_SECONDS": "10", "REDIS_TIMEOUT_SECONDS": "2"}


@pytest.fixture
def fleet_options(request: pytest.FixtureRequest) -> dict[str, str]:
    return SHORT_TIMEOUTS | getattr(request, "param", {})


def run_under_load(change: Callable[[], object]) -> threading.Thread:
    """Performs the given action in a thread while the load runs."""
    thread = threading.Thread(target=change)
    thread.start()
    return thread


def load(fleet: Fleet, start: int, change: Callable[[], object]) -> None:
    """Dispatches batches while `change` runs.

    Asserts that all batches succeed and that none of them is missing at the sink.
    """
    batches = [make_batch(start=start + 100 * number) for number in range(BATCHES)]
    fleet.script("clickhouse", "slow 0.2")
    thread = run_under_load(change)
    fleet.settle_all(fleet._dispatchers[0], batches)
    thread.join()

    kept = {name for call in fleet.calls("clickhouse") for name in call["names"]}
    assert {row.id for batch in batches for each in batch.segments for row in each.clickhouse} <= kept


@pytest.fixture
def switched_address(children: Children, tmp_path: Path) -> Iterator[tuple[FaultProxy, Redis, Redis]]:
    """Yields an address, the primary to which it points, and the replica of this primary."""
    servers = [Redis(children, tmp_path / name, name=name) for name in ("first", "second")]
    for server in servers:
        server.start()
    first, second = servers
    send_command(second.port, ["REPLICAOF", HOST, str(first.port)])
    with FaultProxy(first.address) as proxy:
        yield proxy, first, second


def test_a_demoted_primary_with_open_connections_is_abandoned(
    switched_address: tuple[FaultProxy, Redis, Redis], fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the address moves to another server while connections to the demoted primary are open, the old
    connections are abandoned.

    Nothing is lost.
    """
    proxy, first, second = switched_address
    url = f"redis://{proxy.address}/0"
    monkeypatch.setenv("REPLAYS_REDIS_URL", url)
    fleet.environment["REPLAYS_REDIS_URL"] = url
    fleet.settings = Settings()
    worker = fleet.worker()
    fleet.dispatcher()
    watch = FleetWatch(fleet.settings, Metrics(fleet.settings))
    load(fleet, 0, watch.check)
    cut_before = proxy.counts["reset"]

    def fail_over() -> None:
        send_command(second.port, ["REPLICAOF", "NO", "ONE"])
        proxy.set_target(f"{HOST}:{second.port}")
        send_command(first.port, ["REPLICAOF", HOST, str(second.port)])

    load(fleet, 100_000, fail_over)
    watch.check()
    watch.check()

    assert watch.dependencies() == {"redis": ""}
    assert (worker.alive, worker.starts) == (True, 1)
    assert proxy.counts["reset"] == cut_before


class TestSentinel:
    """A primary, a replica and three Sentinels, each with a password."""

    @pytest.fixture
    def fleet_redis(self, children: Children, tmp_path: Path) -> RedisGroup:
        return RedisGroup(children, tmp_path / "group", password="pw-redis", sentinel_password="pw-sentinel")

    @pytest.mark.parametrize("fleet_options", [{"REDIS_SENTINEL_PASSWORD": "pw-sentinel"}], indirect=True)
    def test_batches_arrive_through_a_failover_and_a_killed_primary(self, fleet: Fleet) -> None:
        """All batches are flushed even if Sentinel replaces the primary under load and the new primary dies."""
        assert isinstance(fleet.redis, RedisGroup)
        worker = fleet.worker()
        fleet.dispatcher()

        load(fleet, 0, lambda: None)
        load(fleet, 100_000, fleet.redis.failover)
        load(fleet, 200_000, fleet.redis.kill_primary)

        assert (worker.alive, worker.starts) == (True, 1)
        assert not status.collect(fleet.settings).parked
        assert "pw-redis" not in worker.log_path.read_text()
        assert "pw-sentinel" not in worker.log_path.read_text()

    @pytest.mark.parametrize("fleet_options", [{"REDIS_SENTINEL_PASSWORD": "pw-sentinel"}], indirect=True)
    def test_every_program_tries_the_next_sentinel(self, fleet: Fleet) -> None:
        """If the first Sentinel is unavailable, every program tries the next Sentinel.

        Commands and Flower also find the primary in this way.
        """
        assert isinstance(fleet.redis, RedisGroup)
        fleet.redis.sentinels[0].kill()
        fleet.dispatcher().submit(do.Dispatch(make_batch(), Stage.ROWS, 1, 60.0))
        fleet.wait(lambda: fleet.client.llen("replays:celery:flush.clickhouse") == 1, "the chord")
        port = free_port()
        flower = {"REPLAYS_FLOWER_PORT": str(port), "REPLAYS_FLOWER_BASIC_AUTH": "test:only-for-now"}
        celery = [sys.executable, "-m", "celery", "-A", "tasks", "flower"]
        fleet.children.start("flower", celery, env={**fleet.environment, **flower}, cwd=ROOT)
        fleet.wait(lambda: answers_http(f"http://{HOST}:{port}/healthcheck"), "Flower", 90)
        request = urllib.request.Request(f"http://{HOST}:{port}/api/queues/length")
        request.add_header("Authorization", "Basic " + base64.b64encode(b"test:only-for-now").decode())

        with urllib.request.urlopen(request, timeout=30) as answer:
            queues = {each["name"]: each["messages"] for each in json.loads(answer.read())["active_queues"]}

        def is_listed() -> bool:
            listed = PARENTS.run(
                [sys.executable, "-m", "ingest.cli", "status", "--json"], {**os.environ, **fleet.environment}
            )
            assert listed.exit_code == 0, listed.stderr
            return "reader-1" in listed.stdout

        assert queues["flush.clickhouse"] == 1
        fleet.wait(is_listed, "the reader's heartbeat")


def test_sentinels_and_redis_are_reached_over_tls(children: Children, tmp_path: Path) -> None:
    """Each kind of client verifies the certificates of the Sentinels and of Redis."""
    certificates = make_certificates(tmp_path / "certificates")
    redis = Redis(children, tmp_path / "redis", options=("--requirepass", "pw-redis"))
    redis.start()
    with TlsProxy(redis.port, certificates) as tls, tls_or_plain(redis.port, tls.port) as port:
        sentinel = Sentinel(children, tmp_path / "sentinel", lambda: port, password="pw-redis", quorum=1)
        sentinel.start()
        with TlsProxy(sentinel.port, certificates) as front:
            given: dict[str, Any] = {
                "redis_url": f"sentinel://:pw-redis@{HOST}:{front.port}/2",
                "redis_sentinel_master": MASTER,
                "redis_tls_ca_file": certificates.ca,
                "redis_sentinel_tls": "all",
            }
            settings = Settings(**given)
            app = publisher(settings)

            assert connect(settings).set("x", 1)
            assert app.backend.client.get("x") == b"1"
            assert app.connection_for_write().channel()
            with pytest.raises(RedisConnectionError, match="certificate verify failed"):
                connect(Settings(**given | {"redis_tls_ca_file": None})).ping()
            with pytest.raises(RedisError):
                connect(Settings(**given | {"redis_sentinel_tls": "redis"})).ping()


def test_a_batch_is_flushed_over_a_unix_socket(
    fleet: Fleet, children: Children, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is flushed over a Unix socket; the Redis URL contains the socket's path and a database number."""
    path = tmp_path_factory.mktemp("s") / "r.sock"
    redis = Redis(children, path.parent / "data", name="by-socket", options=("--unixsocket", str(path)))
    redis.start()
    fleet.environment["REPLAYS_REDIS_URL"] = f"redis+socket://{path}?virtual_host=3"
    monkeypatch.setenv("REPLAYS_REDIS_URL", fleet.environment["REPLAYS_REDIS_URL"])
    fleet.settings = Settings()
    fleet.worker()

    settled = fleet.settle(fleet.dispatcher(), make_batch())

    assert isinstance(settled, on.FlushSucceeded)
    assert "db3" in query_keyspace(redis)


def query_keyspace(redis: Redis) -> str:
    """Returns the databases of this Redis that contain keys."""
    return str(redis.send_command("INFO", "keyspace"))


@contextmanager
def tls_or_plain(plain_port: int, tls_port: int) -> Iterator[int]:
    """Yields a port for both protocols: a TLS handshake goes to `tls_port`, everything else to `plain_port`.

    Sentinel gives its clients the address that it uses itself, and the embedded server does not support TLS.
    """

    class Sniff(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            first = self.request.recv(65536)
            if not first:
                return
            with socket.create_connection((HOST, tls_port if first[0] == 0x16 else plain_port)) as server:
                server.sendall(first)
                back = threading.Thread(target=_copy, args=(server, self.request))
                back.start()
                _copy(self.request, server)
                back.join()

    with socketserver.ThreadingTCPServer((HOST, 0), Sniff) as listening:
        listening.daemon_threads = True
        listening.block_on_close = False
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield listening.server_address[1]
        listening.shutdown()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
