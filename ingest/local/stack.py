"""The embedded stack: broker, Redis, Cloud Storage, ClickHouse, BigQuery and DogStatsD, as one thing.

`Stack` starts them inside a `with` block. `up`, `down` and `status` keep one running in the background for
development. Any part can be a real server instead: `REPLAYS_LOCAL_KAFKA=host:9092` (or `_REDIS`, `_GCS`,
`_CLICKHOUSE`, `_BIGQUERY`, `_STATSD`) makes the stack use that one and start none.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from ingest.local.servers.base import Server
from ingest.local.servers.bigquery.server import BigQuery
from ingest.local.servers.clickhouse import ClickHouse
from ingest.local.servers.gcs import CloudStorage
from ingest.local.servers.java_kafka import JavaKafka
from ingest.local.servers.kafka import Kafka
from ingest.local.servers.processes import Children, LocalError, ending_on_signals, wait_until
from ingest.local.servers.redis import Redis
from ingest.local.servers.statsd import Statsd

PARTS = ("kafka", "redis", "gcs", "clickhouse", "bigquery", "statsd")
KafkaKind = Literal["tansu", "apache"]
EXTERNAL_PREFIX = "REPLAYS_LOCAL_"
DIRECTORY_VARIABLE = "REPLAYS_LOCAL_DIRECTORY"
UP_SECONDS_MAX = 90.0
DOWN_SECONDS_MAX = 30.0

# Tansu's group joins take half the session time-out; the drain deadline has to be shorter than the session.
TANSU_SETTINGS = {"REPLAYS_KAFKA_SESSION_TIMEOUT_SECONDS": "6", "REPLAYS_DRAIN_DEADLINE_SECONDS": "4"}

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Part:
    """One running part: where it is, and its process (0 and no log for a server that is not ours)."""

    name: str
    address: str
    pid: int
    log: str


class Stack:
    """Starts parts at once and stops them at the end, whatever happens in between.

    `directory` None: a temporary one, removed at the end. `kafka`: "tansu" or "apache" (needs Java and mvn).
    `progress` is called with one line a part. `ports` are wishes, by part; free ones are taken otherwise.
    Servers are in `servers` by part, for kill() and restart().
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        kafka: KafkaKind = "tansu",
        progress: Progress = lambda line: None,
        environ: Mapping[str, str] = os.environ,
        ports: Mapping[str, int] | None = None,
    ) -> None:
        self._is_temporary = directory is None
        self.directory = Path(tempfile.mkdtemp(prefix="replays-")) if directory is None else directory.absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.children = Children(self.directory / "logs")
        self.servers: dict[str, Server] = {}
        self.external: dict[str, str] = {}
        self._kafka: KafkaKind = kafka
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
        """Starts these parts in parallel. Raises LocalError, with the end of a log, if one does not come up."""
        chosen = list(parts)
        unknown = set(chosen) - set(PARTS)
        if unknown:
            raise LocalError(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
        for name in chosen:
            address = self._environ.get(f"{EXTERNAL_PREFIX}{name.upper()}", "")
            if address:
                self.external[name] = address
                self._progress(f"{name:<10} {address} (not ours)")
            elif name not in self.servers:
                self.servers[name] = self._make(name)
                # Not given to the constructor: taken meanwhile, another one will do.
                self.servers[name].port = self._ports.get(name, 0)
        ours = [name for name in chosen if name in self.servers]
        with ThreadPoolExecutor(max_workers=len(PARTS)) as pool:
            futures = [pool.submit(self._start_one, name) for name in ours]
        for future in futures:
            future.result()
        return self

    def stop(self) -> None:
        """Stops everything; a temporary directory goes. May be called twice."""
        self.children.close()
        if self._is_temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def parts(self) -> dict[str, Part]:
        """What is there now."""
        ours = {
            name: Part(name, server.address, server.child.pid, str(server.child.log_path))
            for name, server in self.servers.items()
        }
        return ours | {name: Part(name, address, 0, "") for name, address in self.external.items()}

    @property
    def addresses(self) -> dict[str, str]:
        """Address by part, in the form that each client library takes; `statsd_query` answers over HTTP."""
        found = {name: part.address for name, part in self.parts.items()}
        statsd = self.servers.get("statsd")
        if isinstance(statsd, Statsd):
            found["statsd_query"] = statsd.query_url
        return found

    def settings(self) -> dict[str, str]:
        """The REPLAYS_* variables that point the system at these servers."""
        found = dict(TANSU_SETTINGS) if isinstance(self.servers.get("kafka"), Kafka) else {}
        for name, address in self.addresses.items():
            found |= settings_of(name, address)
        return found

    def _make(self, name: str) -> Server:
        directory = self.directory / name
        match name:
            case "kafka":
                kind: type[Server] = JavaKafka if self._kafka == "apache" else Kafka
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
    """The REPLAYS_* variables of one part. The address `cloud` is Google itself: no endpoint is set."""
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
        case "statsd":
            host, _, port = address.rpartition(":")
            return {"REPLAYS_DATADOG_HOST": host, "REPLAYS_DATADOG_PORT": port}
    return {}


# ---------------------------------------------------------------------------------------------- in the background


@dataclass(frozen=True, slots=True)
class StackState:
    """A stack in the background, as its state file tells. `error` is set if it did not come up."""

    directory: str
    pid: int
    parts: tuple[Part, ...]
    addresses: Mapping[str, str]
    settings: Mapping[str, str]
    error: str = ""

    def to_json(self) -> str:
        """For scripts."""
        return json.dumps(asdict(self), indent=2)

    def exports(self) -> str:
        """Lines for a shell."""
        return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in sorted(self.settings.items()))

    def describe(self) -> str:
        """For people: every address, and the lines that point a shell at it."""
        lines = [f"  {name:<12} {address}" for name, address in self.addresses.items()]
        return "\n".join([f"stack in {self.directory} (process {self.pid})", *lines, "", self.exports()])


def default_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """REPLAYS_LOCAL_DIRECTORY, else .local/stack in a checkout, else the user's state directory."""
    if environ.get(DIRECTORY_VARIABLE):
        return Path(environ[DIRECTORY_VARIABLE])
    if Path("pyproject.toml").exists() and Path("celeryconfig.py").exists():
        return Path(".local/stack").absolute()
    state = environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "replays-ingest" / "stack"


def up(
    directory: Path | None = None,
    *,
    parts: Sequence[str] = PARTS,
    kafka: KafkaKind = "tansu",
    progress: Progress = lambda line: None,
) -> StackState:
    """Starts a stack that outlives us, and returns when all of it answers. One that runs already is returned.

    Raises LocalError if a part does not come up; then nothing is left running.
    """
    place = (directory or default_directory()).absolute()
    running = status(place)
    if running is not None:
        progress("already up")
        return running
    place.mkdir(parents=True, exist_ok=True)
    _state_path(place).unlink(missing_ok=True)
    with (place / "supervisor.log").open("wb") as log:
        supervisor = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "ingest.local.stack",
                "supervise",
                str(place),
                "--kafka",
                kafka,
                "--parts",
                ",".join(parts),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    told = 0

    def decided() -> bool:
        nonlocal told
        lines = (place / "supervisor.log").read_text("utf-8", "replace").splitlines()
        for line in lines[told:]:
            progress(line)
        told = len(lines)
        return _read_state(place) is not None or supervisor.poll() is not None

    try:
        wait_until(decided, UP_SECONDS_MAX, "the stack to come up")
    except (LocalError, KeyboardInterrupt):
        supervisor.terminate()
        raise
    state = _read_state(place)
    if state is None or state.error:
        reason = state.error if state is not None else (place / "supervisor.log").read_text("utf-8", "replace")
        raise LocalError(f"the stack did not come up: {reason}")
    return state


def down(directory: Path | None = None) -> bool:
    """Stops the stack of this directory and waits until it is gone; its data stays. False if none runs."""
    place = (directory or default_directory()).absolute()
    state = status(place)
    if state is None:
        return False
    os.kill(state.pid, signal.SIGTERM)
    try:
        wait_until(lambda: not _is_locked(place), DOWN_SECONDS_MAX, "the stack to stop")
    except LocalError:
        # Its warden takes the servers along.
        os.kill(state.pid, signal.SIGKILL)
        wait_until(lambda: not _is_locked(place), DOWN_SECONDS_MAX, "the killed stack to go")
    _state_path(place).unlink(missing_ok=True)
    return True


def status(directory: Path | None = None) -> StackState | None:
    """The stack of this directory if one runs. A state file without a supervisor is of the past."""
    place = (directory or default_directory()).absolute()
    return _read_state(place) if _is_locked(place) else None


def supervise(directory: Path, parts: Sequence[str], kafka: KafkaKind) -> int:
    """What the background process does: hold the lock, run the parts, start again what dies, until SIGTERM."""
    with (directory / "lock").open("w") as lock, ending_on_signals() as ending:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another supervisor holds the lock", flush=True)
            return 1
        # The addresses of last time, so that what a shell has exported stays true.
        memory = directory / "ports.json"
        ports = json.loads(memory.read_text()) if memory.exists() else {}
        with Stack(directory, kafka=kafka, progress=lambda line: print(line, flush=True), ports=ports) as stack:
            try:
                stack.start(parts)
                ports |= {name: server.port for name, server in stack.servers.items()}
                memory.write_text(json.dumps(ports))
            except LocalError as error:
                _write_state(directory, StackState(str(directory), os.getpid(), (), {}, {}, error=str(error)))
                return 1
            for server in stack.servers.values():
                stack.children.keep(server.child)
            seen: tuple[Part, ...] = ()
            while not ending.wait(0.5):
                now = tuple(stack.parts.values())
                if now != seen:
                    seen = now
                    state = StackState(str(directory), os.getpid(), now, stack.addresses, stack.settings())
                    _write_state(directory, state)
    return 0


def _state_path(directory: Path) -> Path:
    return directory / "state.json"


def _write_state(directory: Path, state: StackState) -> None:
    """Whole or not at all."""
    draft = directory / "state.json.new"
    draft.write_text(state.to_json())
    draft.replace(_state_path(directory))


def _read_state(directory: Path) -> StackState | None:
    try:
        found: dict[str, Any] = json.loads(_state_path(directory).read_text())
    except (OSError, ValueError):
        return None
    return StackState(**{**found, "parts": tuple(Part(**part) for part in found["parts"])})


def _is_locked(directory: Path) -> bool:
    """Whether a supervisor lives: the kernel gives its lock back however it ends."""
    with contextlib.suppress(FileNotFoundError), (directory / "lock").open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def main() -> int:
    """python -m ingest.local.stack up|down|status|supervise"""
    parser = argparse.ArgumentParser(description="The embedded stack in the background.")
    parser.add_argument("verb", choices=("up", "down", "status", "supervise"))
    parser.add_argument("directory", nargs="?", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS), help="which, comma separated")
    parser.add_argument("--kafka", choices=("tansu", "apache"), default="tansu")
    parser.add_argument("--json", action="store_true", help="print the state as JSON")
    arguments = parser.parse_args()
    parts = [name for name in arguments.parts.split(",") if name]
    if arguments.verb == "supervise":
        return supervise(arguments.directory, parts, arguments.kafka)
    if arguments.verb == "down":
        print("stopped" if down(arguments.directory) else "nothing runs")
        return 0
    if arguments.verb == "up":
        try:
            state: StackState | None = up(arguments.directory, parts=parts, kafka=arguments.kafka, progress=print)
        except LocalError as error:
            print(error, file=sys.stderr)
            return 1
    else:
        state = status(arguments.directory)
    if state is None:
        print("nothing runs")
        return 3
    print(state.to_json() if arguments.json else state.describe())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
