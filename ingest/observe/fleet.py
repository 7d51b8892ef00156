"""Fleet metrics that the reader collects from Redis: queue depths, circuit breakers, Redis memory.

`status` uses the same functions.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

import msgspec
import structlog
from redis.exceptions import RedisError

from ingest.observe.metrics import Metrics
from ingest.settings import Settings
from tasks.breaker import BreakerPhase, read_states
from tasks.configuration import configuration
from tasks.connection import CHECK_SECONDS_MAX, advice, connect, prove_writable, refusal
from tasks.coordination import Coordination
from tasks.errors import shortened
from tasks.faults import START_WORKER_ADVICE, Fault, Server
from tasks.foreign_keys import results
from tasks.names import CONTROL_QUEUE, flush_queue
from tasks.observe.loops import Loop
from tasks.observe.presence import consumers, workers

log = structlog.get_logger(__name__)
BREAKER_LEVELS = {BreakerPhase.CLOSED: 0, BreakerPhase.HALF_OPEN: 1, BreakerPhase.OPEN: 2}


class RedisMemory(msgspec.Struct, frozen=True):
    """Memory used by Redis, maxmemory (0 if unlimited) and eviction policy."""

    used_bytes: int
    max_bytes: int
    policy: str


def redis_memory(client: Any) -> RedisMemory:
    """Runs one INFO command. Raises redis.exceptions.RedisError."""
    memory = client.info("memory")
    return RedisMemory(
        used_bytes=int(memory.get("used_memory", 0)),
        max_bytes=int(memory.get("maxmemory", 0)),
        policy=str(memory.get("maxmemory_policy", "")),
    )


def queue_depths(settings: Settings, client: Any) -> dict[str, int]:
    """Returns the number of waiting tasks by queue. Raises redis.exceptions.RedisError."""
    queues = [*(flush_queue(sink) for sink in settings.sinks), CONTROL_QUEUE]
    pipe = client.pipeline(transaction=False)
    for queue in queues:
        pipe.llen(broker_prefix(settings) + queue)
    return dict(zip(queues, results(pipe, 0), strict=True))


def broker_prefix(settings: Settings) -> str:
    """Returns the prefix of all Celery keys in Redis."""
    return str(configuration(settings)["broker_transport_options"]["global_keyprefix"])


class ReportedProblems:
    """Logs each problem with servers and workers once when it begins and once when it ends."""

    def __init__(self) -> None:
        self._servers: dict[str, str] = {}
        self._queues: tuple[str, ...] = ()

    def redis(self, problem: str, what_to_do: str) -> None:
        """Logs when a problem with Redis begins or ends. `problem`: the current problem; "" if there is none."""
        self._report(Server.REDIS, problem, what_to_do)

    def kafka(self, found: Fault | None) -> None:
        """Logs when a fault of the brokers begins or ends. `found`: the current fault; None if there is none."""
        self._report(Server.KAFKA, *(("", "") if found is None else (found.problem, found.what_to_do)))

    def _report(self, server: Server, problem: str, what_to_do: str) -> None:
        reported = self._servers.get(server, "")
        if problem and problem != reported:
            log.warning(f"{server}_unusable", error=problem, what_to_do=what_to_do)
        elif reported and not problem:
            log.info(f"{server}_usable")
        self._servers[server] = problem

    def queues(self, without_worker: tuple[str, ...]) -> None:
        """Reports the queues that no worker currently consumes."""
        if without_worker and without_worker != self._queues:
            log.warning(
                "queues_without_worker",
                queues=list(without_worker),
                what_to_do=f"{START_WORKER_ADVICE}; until then nothing is committed",
            )
        elif self._queues and not without_worker:
            log.info("every_queue_has_a_worker")
        self._queues = without_worker


class FleetWatch:
    """A thread that queries Redis once per heartbeat interval, for metrics and /readyz. The thread never blocks
    the loop.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._client: Any = connect(settings, retries=0)
        self._redis_problem = "not checked yet"
        self._reported = ReportedProblems()
        self._kind_is_known = False
        self.loop = Loop("fleet-watch", self.check, settings.heartbeat_seconds, on_failure=metrics.loop_failed)

    def start(self) -> None:
        """Starts the thread. Redis need not be reachable."""
        self.loop.start()

    def stop(self) -> None:
        """Ends the thread, within one Redis timeout."""
        self.loop.stop(self._settings.redis_timeout_seconds)

    def dependencies(self) -> dict[str, str]:
        """Returns the problem with Redis; "" if the last query succeeded."""
        return {"redis": self._redis_problem}

    def check(self) -> None:
        """Updates the metrics once. Redis errors are kept for `dependencies` and never raised."""
        try:
            self._redis_problem = self._unusable() or self._measure()
        except (RedisError, OSError) as error:
            self._redis_problem = shortened(f"{type(error).__name__}: {error}")
            self._kind_is_known = False  # the address may resolve to a different server next time
            self._reported.redis(self._redis_problem, advice(error))
        else:
            self._reported.redis(self._redis_problem, "see docs/redis.md")
        self._metrics.meters.set("replays.reader.redis_up", not self._redis_problem)
        if self._metrics.snapshot.paused:
            self._metrics.query_log_end_offsets()

    def _unusable(self) -> str:
        """Returns the reason why Redis is unusable although it responds; "" if it is usable. Writes a key as a
        test, because a read-only replica also responds to reads. Raises RedisError. Until Redis has responded
        once, the timeout is short."""
        if not self._kind_is_known:
            with closing(connect(self._settings, retries=0, seconds_max=CHECK_SECONDS_MAX)) as client:
                client.ping()
            text = refusal(self._client)
            if text:
                return text
            self._kind_is_known = True
        prove_writable(self._client, f"{self._settings.key_prefix}:probe")
        return ""

    def _measure(self) -> str:
        """Updates metrics of queues, breakers and memory. Raises if anything fails."""
        meters = self._metrics.meters
        for queue, depth in queue_depths(self._settings, self._client).items():
            meters.set("replays.reader.queue_depth", depth, queue)
        states = read_states(self._client, self._settings.key_prefix, self._settings.sinks)
        for sink, state in states.items():
            meters.set("replays.reader.breaker_state", BREAKER_LEVELS[state.state], sink)
        found = workers(Coordination(self._client, self._settings), self._settings)
        consumed = consumers(found, self._settings.sinks)
        for queue, count in consumed.items():
            meters.set("replays.reader.queue_consumers", count, queue)
        self._reported.queues(tuple(queue for queue, count in consumed.items() if not count))
        memory = redis_memory(self._client)
        meters.set("replays.reader.redis_used_bytes", memory.used_bytes)
        meters.set("replays.reader.redis_max_bytes", memory.max_bytes)
        return ""
