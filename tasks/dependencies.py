"""Tests whether the servers that may require a login can be used: Redis, Kafka, ClickHouse.

Each test is one cheap request, so that an idle system reports faults too. A worker runs the tests for its sinks
when it starts; `status`, `top` and the operator's page run them while they are open. `check` tests much more.
Each test imports its client library only when the test runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from redis.exceptions import RedisError

from tasks import connection
from tasks.faults import Fault
from tasks.observe.loops import Loop
from tasks.settings import Settings
from tasks.wire import SinkName

CHECK_SECONDS_MAX = connection.CHECK_SECONDS_MAX
KAFKA_SECONDS_MAX = 2.0  # includes connecting, with TLS and a login
DOWN_SECONDS_MAX = 1.0
INTERVAL_SECONDS = 5.0
Check = Callable[[Settings], Fault | None]


def redis(settings: Settings) -> Fault | None:
    """Returns the fault that prevents the use of Redis; None if Redis can be used."""
    client = connection.connect(settings, retries=0, seconds_max=CHECK_SECONDS_MAX)
    try:
        client.ping()
    except (RedisError, OSError) as error:
        return connection.fault_of(error)
    finally:
        client.close()
    return None


def kafka(settings: Settings) -> Fault | None:
    """Returns the fault that prevents the use of Kafka; None if Kafka can be used or no broker is configured."""
    if not settings.kafka_brokers:
        return None
    from tasks.kafka.topics import ClusterUnreachable, Topics

    try:
        Topics(settings).inventory(KAFKA_SECONDS_MAX, down_seconds_max=DOWN_SECONDS_MAX)
    except ClusterUnreachable as failure:
        return failure.fault
    return None


def clickhouse(settings: Settings) -> Fault | None:
    """Returns the fault that prevents the use of ClickHouse; None if it can be used or its sink is disabled."""
    if SinkName.CLICKHOUSE not in settings.sinks:
        return None
    from tasks.sinks.clickhouse import reach

    return reach.fault_of(settings, CHECK_SECONDS_MAX)


ALL = (redis, kafka, clickhouse)
ALL_EXCEPT_REDIS = (kafka, clickhouse)


def checks_of_worker(sinks: Collection[SinkName]) -> tuple[Check, ...]:
    """Returns the tests that a worker with these sinks runs."""
    of_sinks = {SinkName.DEAD_LETTER: kafka, SinkName.CLICKHOUSE: clickhouse}
    return (redis, *(check for sink, check in of_sinks.items() if sink in sinks))


def faults(settings: Settings, checks: Sequence[Check]) -> Iterator[Fault]:
    """Runs these tests concurrently, and yields each fault as soon as it is known. Finishes shortly after
    KAFKA_SECONDS_MAX at the latest.
    """
    with ThreadPoolExecutor(len(checks), thread_name_prefix="dependencies") as pool:
        for ended in as_completed([pool.submit(check, settings) for check in checks]):
            found = ended.result()
            if found is not None:
                yield found


class Dependencies:
    """The current faults of Kafka and ClickHouse. A thread, started on first use, tests both servers every
    INTERVAL_SECONDS.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._faults: tuple[Fault, ...] = ()
        self._known, self._lock, self._started = threading.Event(), threading.Lock(), False
        self._loop = Loop("dependencies", self._check, INTERVAL_SECONDS)

    def faults(self, wait_seconds: float) -> tuple[Fault, ...]:
        """Returns the faults found by the last test. The first call waits up to `wait_seconds` for a result."""
        with self._lock:
            if not self._started:
                self._started = True
                self._loop.start()
        self._known.wait(wait_seconds)
        return self._faults

    def stop(self) -> None:
        """Asks the thread to end after its current tests of the servers. Returns immediately."""
        self._loop.request_stop()

    def _check(self) -> None:
        self._faults = tuple(faults(self._settings, ALL_EXCEPT_REDIS))
        self._known.set()
