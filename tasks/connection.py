"""How to reach Redis: every connection of readers, workers, Celery and commands is made here.

A connection that lives can still be useless: after a failover the old primary answers READONLY for as long as
anybody asks it. Such an answer (`AWAY` lists them) closes the connection, and every other one of this process to
the same address, and is raised as `RedisAway`, a connection error: callers retry as if Redis were gone, and the
next connection resolves the address again, by DNS or by the Sentinels.
docs/decisions/033-useless-connections.md says why.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from redis import Connection, ConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection
from redis.backoff import ExponentialBackoff
from redis.connection import PythonRespSerializer  # type: ignore[attr-defined]  # types-redis is older
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool, SentinelManagedConnection

from tasks.loading import SettingsError
from tasks.redis_address import RedisAddress, Scheme
from tasks.settings import Settings

CONNECT_SECONDS_MAX = 3.0
# Each Sentinel is asked in turn, so one that hangs must not use up the time of the others.
SENTINEL_SECONDS_MAX = 1.0

# What proves that a server takes writes.
PROBE_SECONDS = 60

# Codes of answers that mean "not this server, or not now". OOM is none of them: a full primary is the primary.
AWAY = frozenset(
    {
        "READONLY",  # a replica: the primary was demoted
        "UNBLOCKED",  # it was demoted while the call waited
        "MASTERDOWN",  # a replica that has lost its primary and serves no stale data
        "NOREPLICAS",  # a primary cut off from its replicas (min-replicas-to-write)
        "MISCONF",  # it cannot write its snapshots and refuses writes
        "LOADING",  # it still reads its data
        "BUSY",  # a script does not end
        "CLUSTERDOWN",
        "FAILOVER",
        "REDIRECT",
    }
)


class RedisAway(RedisConnectionError):
    """Redis answered that it cannot serve. The connection is closed; the text has the answer."""


def away_code(error: BaseException) -> str:
    """The code of an answer that means "away"; "" for any other error.

    Inside of scripts older servers put the code into the text: `ERR Error running script ...: -READONLY You ...`.
    """
    if isinstance(error, RedisAway) or not isinstance(error, ResponseError | RedisConnectionError):
        return ""
    text = str(error)
    code = _code(error)
    if code in AWAY:
        return code
    if isinstance(error, ResponseError) and "script" in text:
        return next((code for code in sorted(AWAY) if f" -{code} " in text), "")
    return ""


def _code(error: BaseException) -> str:
    """The first word of an answer; redis-py takes those that it knows off the text."""
    return getattr(error, "status_code", None) or str(error).partition(" ")[0]


class _Judged:
    """Mixed into redis-py's connections: believes no server that cannot serve."""

    if TYPE_CHECKING:
        encoder: Any
        _buffer_cutoff: int

        def disconnect(self, *args: Any) -> None: ...

    def _construct_command_packer(self, packer: Any) -> Any:
        """hiredis reads answers in less than half of the time, but packs a large payload in ten times as much."""
        return PythonRespSerializer(self._buffer_cutoff, self.encoder.encode)

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """The answer, as redis-py reads it. Raises RedisAway for answers of AWAY, also in a transaction."""
        try:
            answer = super().read_response(*args, **kwargs)  # type: ignore[misc]
        except RedisError as error:
            self._judge(error)
            raise
        if type(answer) is list:
            for part in answer:
                if isinstance(part, ResponseError):
                    self._judge(part)
        return answer

    def _judge(self, error: RedisError) -> None:
        code = away_code(error)
        if not code:
            return
        self.disconnect()
        _forget_connections()
        text = str(error)
        raise RedisAway(text if text.startswith(code) else f"{code} {text}") from error


class _JudgedTcp(_Judged, Connection):
    """Over TCP."""


class _JudgedTls(_Judged, SSLConnection):
    """With TLS."""


class _JudgedSocket(_Judged, UnixDomainSocketConnection):
    """Over a Unix socket."""


class _JudgedSentinel(SentinelManagedConnection, _JudgedTcp):
    """To the primary that the Sentinels name."""


class _JudgedSentinelTls(SentinelManagedConnection, _JudgedTls):
    """The same with TLS."""


_CLASSES: dict[tuple[Scheme, bool], type[Any]] = {
    (Scheme.PLAIN, False): _JudgedTcp,
    (Scheme.TLS, True): _JudgedTls,
    (Scheme.SOCKET, False): _JudgedSocket,
    (Scheme.SENTINEL, False): _JudgedSentinel,
    (Scheme.SENTINEL, True): _JudgedSentinelTls,
}


class _Sentinels(Sentinel):
    """The Sentinels, asked in turn. One that refuses, or is none, is passed over like one that is away."""

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Address of the primary. Raises MasterNotFoundError, with what each Sentinel said, if none has one."""
        troubles = []
        sentinels: list[Any] = self.sentinels
        for number, sentinel in enumerate(sentinels):
            try:
                state = sentinel.sentinel_masters().get(service_name)
            except RedisError as error:
                troubles.append(f"{_place(sentinel)}: {error}")
                continue
            if state and self.check_master_state(state, service_name):
                sentinels.insert(0, sentinels.pop(number))  # asked first from now on
                return state["ip"], state["port"]
            troubles.append(f"{_place(sentinel)}: {'sees it down' if state else 'watches none of that name'}")
        raise MasterNotFoundError(f"no Sentinel names the primary {service_name!r}: {'; '.join(troubles)}")


def _place(sentinel: Any) -> str:
    options = sentinel.connection_pool.connection_kwargs
    return f"{options['host']}:{options['port']}"


@dataclass(frozen=True, slots=True)
class Link:
    """Everything that connections to Redis need. Compares and prints without any password."""

    address: RedisAddress
    timeout_seconds: float
    tls: bool = False
    ca_file: str = ""
    master: str = ""
    sentinel_tls: bool = False
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)

    def pool(self, retries: int, wrap: Callable[[type[Any]], type[Any]] = lambda kind: kind) -> ConnectionPool:
        """A pool of connections whose calls are bounded by the time-out, and are tried `retries` times more.

        `wrap` may derive a class from the connections' own. Nothing is connected yet.
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
    """What the settings say about Redis."""
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


def connect(settings: Settings, *, retries: int = 1) -> Redis[bytes]:
    """A client that answers or raises: each call is bounded by `redis_timeout_seconds`, `retries` times more.

    Nothing is decoded: values are bytes.
    """
    pool = link_of(settings).pool(retries)
    with _pools_lock:
        _pools.add(pool)
    return Redis.from_pool(pool)  # type: ignore[attr-defined,no-any-return]


# The pools of this process's clients. Celery's are not among them: its event loop owns its connections.
_pools: weakref.WeakSet[ConnectionPool] = weakref.WeakSet()
_pools_lock = threading.Lock()


def _forget_connections() -> None:
    """Closes all connections of this process's clients: the idle ones now, the others after their current call.

    A client that only reads would never notice by itself that its server was demoted.
    """
    with _pools_lock:
        pools: list[Any] = list(_pools)
    for pool in pools:
        pool.disconnect(inuse_connections=False)
        for connection in pool._get_in_use_connections():
            connection.mark_for_reconnect()


def prove_writable(client: Any, key: str) -> None:
    """Writes a small key that expires. Raises RedisAway, among others, if this server takes no writes.

    A server at its memory limit passes: it is the primary, and what it holds can still be worked off.
    """
    try:
        client.set(key, b"", ex=PROBE_SECONDS)
    except ResponseError as error:
        if _code(error) != "OOM":
            raise


class RedisRefused(SettingsError):
    """The server is of a kind that the system cannot work with. The text is one line and says what to do."""


def refusal(client: Any) -> str:
    """Why this server cannot be used, in one line; "" if it can. One INFO. Raises redis.exceptions.RedisError."""
    server = client.info()
    mode = str(server.get("redis_mode") or server.get("server_mode") or "standalone")
    if mode == "cluster" or server.get("cluster_enabled"):
        return (
            "REPLAYS_REDIS_URL: this is a Redis Cluster, which is not supported (a batch's keys lie in several "
            "slots); use one primary with replicas, behind Sentinel if you like"
        )
    if mode == "sentinel":
        return (
            "REPLAYS_REDIS_URL: this is a Sentinel, not a Redis; write sentinel://host:port and set "
            "REPLAYS_REDIS_SENTINEL_MASTER"
        )
    return ""


def refuse_unsupported(settings: Settings) -> None:
    """Raises RedisRefused if Redis answers and cannot be used. A Redis that is away is no reason not to start."""
    client: Any = connect(settings, retries=0)
    try:
        text = refusal(client)
    except (RedisError, OSError):
        return
    finally:
        client.close()
    if text:
        raise RedisRefused(text)
