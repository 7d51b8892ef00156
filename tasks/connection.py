"""All Redis connections of readers, workers, Celery and commands are made here.

An open connection can be unusable: after a failover the old primary keeps responding with READONLY. Such responses
(`UNAVAILABLE_CODES`) close this and all other connections of the process to that address and raise
`RedisUnavailable`, a connection error: callers retry, and the next connection resolves the address again, by DNS
or Sentinel. See docs/decisions/033-useless-connections.md.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from redis import Connection, ConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection
from redis.backoff import ExponentialBackoff
from redis.connection import PythonRespSerializer  # type: ignore[attr-defined]  # types-redis is older
from redis.exceptions import (  # type: ignore[attr-defined]  # types-redis is older
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool, SentinelManagedConnection

from tasks.errors import shortened
from tasks.faults import WHAT_TO_DO, Cause, Fault, Server, fault
from tasks.loading import SettingsError
from tasks.redis_address import RedisAddress, Scheme
from tasks.settings import Settings

CONNECT_SECONDS_MAX = 3.0
# Timeout of calls that test whether Redis can be used, while a user waits: commands, pages, and process startup.
CHECK_SECONDS_MAX = 1.5
# Timeout per Sentinel, so that a hanging Sentinel does not use up the time for the other Sentinels.
SENTINEL_SECONDS_MAX = 1.0

# This key is written to verify that a server is writable.
PROBE_SECONDS = 60

# Error codes that mean "not this server, or not now". OOM is not one of them, because a primary without free
# memory is still the primary.
UNAVAILABLE_CODES = frozenset(
    {
        "READONLY",  # a replica: the primary was demoted
        "UNBLOCKED",  # demoted while the call waited
        "MASTERDOWN",  # a replica that has lost its primary and does not serve stale data
        "NOREPLICAS",  # a primary without enough replicas (min-replicas-to-write)
        "MISCONF",  # a server that cannot write its snapshots, and refuses writes
        "LOADING",  # a server that is still loading its data
        "BUSY",  # a script has been running for too long
        "CLUSTERDOWN",
        "FAILOVER",
        "REDIRECT",
    }
)


class RedisUnavailable(RedisConnectionError):
    """Redis responded that it cannot serve requests. The connection is closed, and the message contains the
    response.
    """


def unavailable_code(error: BaseException) -> str:
    """Returns the error code if it means "unavailable"; "" for other errors.

    For errors in scripts, older servers put the code into the text: `ERR Error running script ...: -READONLY You
    ...`.
    """
    if isinstance(error, RedisUnavailable) or not isinstance(error, ResponseError | RedisConnectionError):
        return ""
    text = str(error)
    code = _code(error)
    if code in UNAVAILABLE_CODES:
        return code
    if isinstance(error, ResponseError) and "script" in text:
        return next((code for code in sorted(UNAVAILABLE_CODES) if f" -{code} " in text), "")
    return ""


# redis-py removes these codes from the text; in version 7, only the class of the error indicates the code.
# Subclasses come first.
_CODE_BY_CLASS: dict[type[BaseException], str] = {
    BusyLoadingError: "LOADING",
    MasterDownError: "MASTERDOWN",
    ClusterDownError: "CLUSTERDOWN",
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
}


def _code(error: BaseException) -> str:
    """Returns the code of an error, which is the first word of its text unless redis-py removed it."""
    known = next((code for kind, code in _CODE_BY_CLASS.items() if isinstance(error, kind)), "")
    return known or getattr(error, "status_code", None) or str(error).partition(" ")[0]


class _CheckedConnection:
    """Mixin for redis-py connections. Raises RedisUnavailable if the server is unusable."""

    if TYPE_CHECKING:
        encoder: Any
        _buffer_cutoff: int

        def disconnect(self, *args: Any) -> None: ...

    def _construct_command_packer(self, packer: Any) -> Any:
        """hiredis parses responses in less than half the time but packs large payloads ten times slower."""
        return PythonRespSerializer(self._buffer_cutoff, self.encoder.encode)

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the response as redis-py parses it. Raises RedisUnavailable for errors in UNAVAILABLE_CODES,
        including those inside a transaction.
        """
        try:
            answer = super().read_response(*args, **kwargs)  # type: ignore[misc]
        except RedisError as error:
            self._raise_if_unavailable(error)
            raise
        if type(answer) is list:
            for part in answer:
                if isinstance(part, ResponseError):
                    self._raise_if_unavailable(part)
        return answer

    def _raise_if_unavailable(self, error: RedisError) -> None:
        code = unavailable_code(error)
        if not code:
            return
        self.disconnect()
        _forget_connections()
        text = str(error)
        raise RedisUnavailable(text if text.startswith(code) else f"{code} {text}") from error


class _CheckedTcp(_CheckedConnection, Connection):
    """A TCP connection. Raises RedisUnavailable if the server is unusable."""


class _CheckedTls(_CheckedConnection, SSLConnection):
    """A TLS connection. Raises RedisUnavailable if the server is unusable."""


class _CheckedSocket(_CheckedConnection, UnixDomainSocketConnection):
    """A Unix socket connection. Raises RedisUnavailable if the server is unusable."""


class _CheckedSentinel(SentinelManagedConnection, _CheckedTcp):
    """A TCP connection to the Sentinels' primary. Raises RedisUnavailable if the primary is unusable."""


class _CheckedSentinelTls(SentinelManagedConnection, _CheckedTls):
    """A TLS connection to the Sentinels' primary. Raises RedisUnavailable if the primary is unusable."""


_CLASSES: dict[tuple[Scheme, bool], type[Any]] = {
    (Scheme.PLAIN, False): _CheckedTcp,
    (Scheme.TLS, True): _CheckedTls,
    (Scheme.SOCKET, False): _CheckedSocket,
    (Scheme.SENTINEL, False): _CheckedSentinel,
    (Scheme.SENTINEL, True): _CheckedSentinelTls,
}


class _Sentinels(Sentinel):
    """Sentinels, queried in turn. A server that refuses the query, or that is not a Sentinel, is skipped like an
    unreachable Sentinel.
    """

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Address of the primary. If no Sentinel knows one, raises MasterNotFoundError with the error of each
        Sentinel.
        """
        failures = []
        sentinels: list[Any] = self.sentinels
        for number, sentinel in enumerate(sentinels):
            try:
                state = sentinel.sentinel_masters().get(service_name)
            except RedisError as error:
                failures.append(f"{_place(sentinel)}: {error}")
                continue
            if state and self.check_master_state(state, service_name):
                sentinels.insert(0, sentinels.pop(number))  # queried first from now on
                return state["ip"], state["port"]
            failures.append(f"{_place(sentinel)}: {'sees it down' if state else 'watches none of that name'}")
        raise MasterNotFoundError(f"no Sentinel names the primary {service_name!r}: {'; '.join(failures)}")


def _place(sentinel: Any) -> str:
    options = sentinel.connection_pool.connection_kwargs
    return f"{options['host']}:{options['port']}"


@dataclass(frozen=True, slots=True)
class Link:
    """Parameters of connections to Redis. The `repr` contains no passwords."""

    address: RedisAddress
    timeout_seconds: float
    tls: bool = False
    ca_file: str = ""
    master: str = ""
    sentinel_tls: bool = False
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)

    def __json__(self) -> str:
        """Returns the URL without user name and password. kombu calls this method to serialize the reply to
        `celery inspect stats`, which contains the transport options."""
        return self.address.shown

    def pool(self, retries: int, wrap: Callable[[type[Any]], type[Any]] = lambda kind: kind) -> ConnectionPool:
        """Returns a connection pool with timeouts and `retries`.

        `wrap` may derive a class from the connection class. Does not connect yet.
        """
        kind = wrap(_CLASSES[self.address.scheme, self.tls])
        retry = Retry(ExponentialBackoff(cap=1.0, base=0.05), retries)
        options = {**self._options(), "retry": retry, "connection_class": kind}
        if self.address.scheme is Scheme.SENTINEL:
            sentinels = _Sentinels(list(self.address.hosts), sentinel_kwargs=self._sentinel_options())
            return SentinelConnectionPool(self.master, sentinels, **options)
        if self.address.scheme is Scheme.SOCKET:
            return ConnectionPool(path=self.address.path, **options)
        host, port = self.address.hosts[0]
        return ConnectionPool(host=host, port=port, **options)

    def _options(self) -> dict[str, Any]:
        address = self.address
        return {
            "db": address.database,
            "username": address.username or None,
            "password": address.password or None,
            "socket_timeout": self.timeout_seconds,
            "health_check_interval": address.health_check_seconds,
            **({} if address.scheme is Scheme.SOCKET else self._tcp(self.timeout_seconds)),
            **(self._tls() if self.tls else {}),
        }

    def _sentinel_options(self) -> dict[str, Any]:
        timeout = min(SENTINEL_SECONDS_MAX, self.timeout_seconds)
        return {
            "username": self.sentinel_username or None,
            "password": self.sentinel_password or None,
            "socket_timeout": timeout,
            "retry": Retry(ExponentialBackoff(), 0),
            **self._tcp(timeout),
            **({"ssl": True, **self._tls()} if self.sentinel_tls else {}),
        }

    def _tcp(self, timeout_seconds: float) -> dict[str, Any]:
        return {"socket_connect_timeout": min(CONNECT_SECONDS_MAX, timeout_seconds), "socket_keepalive": True}

    def _tls(self) -> dict[str, Any]:
        address = self.address
        return {
            "ssl_cert_reqs": address.verification,
            "ssl_check_hostname": address.check_hostname and address.verification != "none",
            "ssl_ca_certs": self.ca_file or None,
            "ssl_certfile": address.certificate_file or None,
            "ssl_keyfile": address.key_file or None,
        }


def link_of(settings: Settings) -> Link:
    """Returns the connection parameters from the settings."""
    return Link(
        address=settings.redis_address,
        timeout_seconds=settings.redis_timeout_seconds,
        tls=settings.redis_tls,
        ca_file=str(settings.redis_tls_ca_file or ""),
        master=settings.redis_sentinel_master,
        sentinel_tls=settings.redis_sentinel_tls == "all",
        sentinel_username=settings.redis_sentinel_username,
        sentinel_password=settings.redis_sentinel_password.get_secret_value(),
    )


def connect(settings: Settings, *, retries: int = 1, seconds_max: float = math.inf) -> Redis[bytes]:
    """Returns a client whose calls are bounded by `redis_timeout_seconds` and by `seconds_max`, with `retries`.

    Values are bytes.
    """
    link = link_of(settings)
    pool = replace(link, timeout_seconds=min(link.timeout_seconds, seconds_max)).pool(retries)
    with _pools_lock:
        _pools.add(pool)
    return Redis.from_pool(pool)  # type: ignore[attr-defined,no-any-return]


# The connection pools of this process's clients. Celery's pools are not included, because Celery's event loop owns
# their connections.
_pools: weakref.WeakSet[ConnectionPool] = weakref.WeakSet()
_pools_lock = threading.Lock()


def _forget_connections() -> None:
    """Closes all connections of this process's clients: idle connections now, busy connections after their current
    call.

    A client that only reads would not notice that its server was demoted.
    """
    with _pools_lock:
        pools: list[Any] = list(_pools)
    for pool in pools:
        pool.disconnect(inuse_connections=False)
        for connection in pool._get_in_use_connections():
            connection.mark_for_reconnect()


def prove_writable(client: Any, key: str) -> None:
    """Writes a small expiring key. Raises RedisError, for example RedisUnavailable, if the server is not writable.

    A server at its memory limit passes: it is the primary, and its staged batches can still be finished.
    """
    try:
        client.set(key, b"", ex=PROBE_SECONDS)
    except ResponseError as error:
        if _code(error) != "OOM":
            raise


class RedisRefused(SettingsError):
    """This kind of server is not supported. The message is one line and states what to do."""


def refusal(client: Any) -> str:
    """Returns the reason why this server is not supported, in one line; "" if it is supported. Uses INFO. Raises
    redis.exceptions.RedisError."""
    server = client.info()
    mode = str(server.get("redis_mode") or server.get("server_mode") or "standalone")
    if mode == "cluster" or server.get("cluster_enabled"):
        return (
            "REPLAYS_REDIS_URL: this is a Redis Cluster, which is not supported (a batch's keys lie in several "
            "slots); use one primary with replicas, optionally behind Sentinel"
        )
    if mode == "sentinel":
        return (
            "REPLAYS_REDIS_URL: this is a Sentinel, not a Redis; write sentinel://host:port and set "
            "REPLAYS_REDIS_SENTINEL_MASTER"
        )
    return ""


def refuse_unsupported(settings: Settings) -> None:
    """Raises RedisRefused if Redis responds but is not supported. If Redis is unreachable, startup continues."""
    client: Any = connect(settings, retries=0, seconds_max=CHECK_SECONDS_MAX)
    try:
        text = refusal(client)
    except (RedisError, OSError):
        return
    finally:
        client.close()
    if text:
        raise RedisRefused(text)


def fault_of(error: BaseException) -> Fault:
    """Returns the Redis fault that this client error indicates."""
    text = shortened(str(error)).rstrip(".")
    if isinstance(error, AuthenticationError):
        return fault(Server.REDIS, Cause.LOGIN, f"refuses the login: {text}")
    if isinstance(error, NoPermissionError):
        return fault(Server.REDIS, Cause.RIGHTS, f"refuses a command: {text}")
    if isinstance(error, (RedisConnectionError, RedisTimeoutError, OSError)):
        return fault(Server.REDIS, Cause.UNREACHABLE, f"does not respond: {text}")
    return Fault(Server.REDIS, text, advice(error))


def advice(error: BaseException) -> str:
    """Returns what the operator should do if Redis does not respond or refuses the client; for other errors,
    returns where to look.
    """
    if isinstance(error, AuthenticationError):
        return WHAT_TO_DO[Server.REDIS, Cause.LOGIN]
    if isinstance(error, NoPermissionError):
        return WHAT_TO_DO[Server.REDIS, Cause.RIGHTS]
    if isinstance(error, (RedisConnectionError, RedisTimeoutError)):
        return WHAT_TO_DO[Server.REDIS, Cause.UNREACHABLE]
    return "check REPLAYS_REDIS_URL" if isinstance(error, RedisError) else "see the message; is the address right?"
