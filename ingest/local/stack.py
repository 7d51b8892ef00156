"""The embedded stack: broker, Redis, Cloud Storage, ClickHouse, BigQuery and DogStatsD.

`Stack` starts these servers inside a `with` block, and `background.py` keeps a stack running. Any component can be
a real server instead: `REPLAYS_LOCAL_KAFKA=host:9092` (or `_REDIS`, `_GCS`, `_CLICKHOUSE`, `_BIGQUERY`, `_STATSD`)
makes the stack use that server instead of starting one. `REPLAYS_LOCAL_BIGQUERY_STORAGE` is the gRPC address of
the Storage Write API on the same server as `REPLAYS_LOCAL_BIGQUERY`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from ingest.local.places import require_own_directory
from ingest.local.servers.base import Server
from ingest.local.servers.bigquery.server import BigQuery
from ingest.local.servers.clickhouse import ClickHouse
from ingest.local.servers.gcs import CloudStorage
from ingest.local.servers.java_kafka import JavaKafka
from ingest.local.servers.kafka import Kafka
from ingest.local.servers.processes import Children, LocalError, private_directory
from ingest.local.servers.redis import Redis
from ingest.local.servers.sentinel import RedisGroup
from ingest.local.servers.statsd import Statsd

PARTS = ("kafka", "redis", "gcs", "clickhouse", "bigquery", "statsd")
KafkaKind = Literal["tansu", "apache"]
RedisKind = Literal["single", "sentinel"]
EXTERNAL_PREFIX = "REPLAYS_LOCAL_"

# Joining a group takes half the session timeout in Tansu. The drain deadline must be shorter than the session
# timeout.
TANSU_SETTINGS = {"REPLAYS_KAFKA_SESSION_TIMEOUT_SECONDS": "6", "REPLAYS_DRAIN_DEADLINE_SECONDS": "4"}

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Part:
    """One running component, with its address and its process. An external server has the pid 0 and no log."""

    name: str
    address: str
    pid: int
    log: str


class Stack:
    """Starts components in parallel and stops them on exit, even after an error.

    If `directory` is None, a temporary directory is used, and removed at the end. `kafka` is "tansu" or "apache",
    which needs Java and mvn. `redis` is "single", or "sentinel" for a primary, a replica and three Sentinels.
    `progress` is called with one line per component. `ports` contains preferred ports by component; all other
    components get free ports. `servers` maps each component to its server, for kill() and restart().
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        kafka: KafkaKind = "tansu",
        redis: RedisKind = "single",
        progress: Progress = lambda line: None,
        environ: Mapping[str, str] = os.environ,
        ports: Mapping[str, int] | None = None,
    ) -> None:
        self._is_temporary = directory is None
        self.directory = Path(tempfile.mkdtemp(prefix="replays-")) if directory is None else directory.absolute()
        require_own_directory(self.directory)
        private_directory(self.directory)
        self.children = Children(self.directory / "logs")
        self.servers: dict[str, Server] = {}
        self.external: dict[str, str] = {}
        self._kafka: KafkaKind = kafka
        self._redis: RedisKind = redis
        self._progress = progress
        self._environ = environ
        self._ports = dict(ports or {})
        if self._is_temporary:
            self.children.remove_at_end(self.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, parts: Iterable[str] = PARTS) -> Self:
        """Starts these components in parallel.

        Raises LocalError, with the end of the component's log, if a component fails to start.
        """
        chosen = list(parts)
        unknown = set(chosen) - set(PARTS)
        if unknown:
            raise LocalError(f"unknown component: {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
        new: set[str] = set()
        for name in chosen:
            address = self._environ.get(f"{EXTERNAL_PREFIX}{name.upper()}", "")
            if address:
                self.external[name] = address
                self._progress(f"{name:<10} {address} (external)")
            elif name not in self.servers:
                new.add(name)
                self.servers[name] = self._make(name)
                # The preferred port is not passed to the constructor: the server would fail if that port is in
                # use, instead of choosing another port.
                self.servers[name].port = self._ports.get(name, 0)
        started = [name for name in chosen if name in self.servers]
        if "redis" in new:
            self._forget_other_messages()
        with ThreadPoolExecutor(max_workers=len(PARTS)) as pool:
            futures = [pool.submit(self._start_one, name) for name in started]
        for future in futures:
            future.result()
        return self

    def _forget_other_messages(self) -> None:
        """Deletes the data of an earlier run from Redis if the broker does not have the messages to which the
        data refers.

        Parked batches, done marks and heartbeats would refer to offsets of a log that no longer exists. Tansu is
        empty after a restart; other brokers keep their messages.
        """
        broker = self.servers.get("kafka")
        if broker is None and "kafka" not in self.external:
            return
        note, data = self.directory / "broker", self.directory / "redis"
        now = "tansu" if isinstance(broker, Kafka) else self.external.get("kafka", "apache")
        before = note.read_text() if note.exists() else now
        if (now == "tansu" or before != now) and data.exists():
            shutil.rmtree(data)
            self._progress("redis      emptied: its state was about messages that the broker no longer has")
        note.write_text(now)

    def stop(self) -> None:
        """Stops everything and removes the stack's directory if it is temporary. The method may be called
        twice."""
        self.children.close()
        if self._is_temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def parts(self) -> dict[str, Part]:
        """The running components."""
        embedded = {
            name: Part(name, server.address, server.child.pid, str(server.child.log_path))
            for name, server in self.servers.items()
        }
        return embedded | {name: Part(name, address, 0, "") for name, address in self.external.items()}

    @property
    def addresses(self) -> dict[str, str]:
        """The addresses by component, in the form that the client library accepts.

        `statsd_query` is an HTTP endpoint, and `bigquery_storage` is the gRPC address of BigQuery.
        """
        found = {name: part.address for name, part in self.parts.items()}
        statsd = self.servers.get("statsd")
        if isinstance(statsd, Statsd):
            found["statsd_query"] = statsd.query_url
        bigquery = self.servers.get("bigquery")
        if isinstance(bigquery, BigQuery):
            found["bigquery_storage"] = bigquery.storage_address
        elif "bigquery" in self.external:
            found["bigquery_storage"] = self._environ.get(f"{EXTERNAL_PREFIX}BIGQUERY_STORAGE", "cloud")
        return found

    def settings(self) -> dict[str, str]:
        """Returns the REPLAYS_* variables that make replays-ingest use the servers of this stack."""
        found = dict(TANSU_SETTINGS) if isinstance(self.servers.get("kafka"), Kafka) else {}
        for name, address in self.addresses.items():
            found |= settings_of(name, address)
        group = self.servers.get("redis")
        return found | group.variables if isinstance(group, RedisGroup) else found

    def _make(self, name: str) -> Server:
        directory = self.directory / name
        match name:
            case "kafka":
                kind: type[Server] = JavaKafka if self._kafka == "apache" else Kafka
            case "redis" if self._redis == "sentinel":
                kind = RedisGroup
            case "redis":
                return Redis(self.children, directory, appendonly=not self._is_temporary)
            case "gcs":
                kind = CloudStorage
            case "clickhouse":
                kind = ClickHouse
            case "bigquery":
                kind = BigQuery
            case _:
                kind = Statsd
        return kind(self.children, directory)

    def _start_one(self, name: str) -> None:
        server, started = self.servers[name], time.monotonic()
        server.start()
        self._progress(f"{name:<10} {server.address}  ({time.monotonic() - started:.1f} s)")


def settings_of(part: str, address: str) -> dict[str, str]:
    """Returns the REPLAYS_* variables of one component.

    The address `cloud` means Google's own service, for which the endpoint setting is empty.
    """
    endpoint = "" if address == "cloud" else address
    match part:
        case "kafka":
            return {"REPLAYS_KAFKA_BROKERS": address}
        case "redis":
            return {"REPLAYS_REDIS_URL": address}
        case "gcs":
            return {"REPLAYS_GCS_ENDPOINT": endpoint}
        case "clickhouse":
            return {"REPLAYS_CLICKHOUSE_URL": address}
        case "bigquery":
            return {"REPLAYS_BIGQUERY_ENDPOINT": endpoint}
        case "bigquery_storage":
            return {"REPLAYS_BIGQUERY_STORAGE_ENDPOINT": endpoint}
        case "statsd":
            host, _, port = address.rpartition(":")
            return {"REPLAYS_DATADOG_HOST": host, "REPLAYS_DATADOG_PORT": port}
    return {}
