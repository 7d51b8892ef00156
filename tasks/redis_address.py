"""Parses `REPLAYS_REDIS_URL` for readers, workers, Flower and commands. redis-py, kombu, Celery's result backend
and Flower each support different URL options and silently ignore others.

Therefore, none of these libraries receives the URL. Every connection uses the address parsed here. An option
that cannot apply to all connections is refused, and the error names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

Value = TypeVar("Value")

FORM = (
    "redis://[user:password@]host[:port][/database], rediss:// for TLS, redis+socket:///path, "
    "or sentinel://[user:password@]host[:port];sentinel://host[:port]/database"
)
REDIS_PORT, SENTINEL_PORT = 6379, 26379
HEALTH_CHECK_SECONDS = 25
VERIFICATION = {name: name for name in ("required", "optional", "none")} | {
    f"CERT_{name.upper()}": name for name in ("required", "optional", "none")
}
BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

# URL options of redis-py for which a setting exists.
SETTING_BY_OPTION: Mapping[str, str] = {
    "socket_timeout": "REDIS_TIMEOUT_SECONDS",
    "socket_connect_timeout": "REDIS_TIMEOUT_SECONDS",
    "timeout": "REDIS_TIMEOUT_SECONDS",
    "ssl_ca_certs": "REDIS_TLS_CA_FILE",
    "master_name": "REDIS_SENTINEL_MASTER",
    "service_name": "REDIS_SENTINEL_MASTER",
    "global_keyprefix": "KEY_PREFIX",
    "visibility_timeout": "TASK_VISIBILITY_SECONDS",
}
TLS_OPTIONS = ("ssl_cert_reqs", "ssl_check_hostname", "ssl_certfile", "ssl_keyfile")
OPTIONS = (*TLS_OPTIONS, "health_check_interval")
SOCKET_DATABASE = ("virtual_host", "db")


class InvalidAddress(ValueError):
    """The URL is invalid. The message states why and contains no secrets."""


class Scheme(StrEnum):
    """The transport to Redis, with or without TLS."""

    PLAIN = "redis"
    TLS = "rediss"
    SOCKET = "redis+socket"
    SENTINEL = "sentinel"


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """The address of a Redis server, or of its Sentinels.

    `hosts`: host and port of the server or of each Sentinel; empty for a socket, which has a `path`.
    `verification` of the server's certificate: required, optional or none. `options`: the names of the options in
    the URL.
    """

    scheme: Scheme
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    database: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    verification: str = "required"
    check_hostname: bool = True
    certificate_file: str = ""
    key_file: str = ""
    health_check_seconds: int = HEALTH_CHECK_SECONDS
    options: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """The URL without user name and password."""
        if self.scheme is Scheme.SOCKET:
            return f"{self.scheme}://{self.path}?virtual_host={self.database}"
        urls = [f"{self.scheme}://{_bracketed(host)}:{port}" for host, port in self.hosts]
        return f"{';'.join(urls)}/{self.database}"

    @property
    def label(self) -> str:
        """A plain URL with the first host, as a label for Celery."""
        host, port = self.hosts[0] if self.hosts else ("localhost", REDIS_PORT)
        return f"{Scheme.PLAIN}://{_bracketed(host)}:{port}/{self.database}"


def parse(url: str) -> RedisAddress:
    """Parses the URL. Raises InvalidAddress."""
    parts = [_split(part) for part in url.rstrip(";").split(";")]
    schemes = {part.scheme for part in parts}
    if len(schemes) > 1 or (len(parts) > 1 and schemes != {Scheme.SENTINEL}):
        raise InvalidAddress("only sentinel:// accepts several hosts, each prefixed with sentinel://")
    scheme = Scheme(parts[0].scheme)
    options = _options(parts)
    _refuse_unknown(scheme, options)
    hosts: tuple[tuple[str, int], ...] = ()
    path = ""
    if scheme is Scheme.SOCKET:
        path, database = unquote(parts[0].path), _socket_database(options)
    else:
        hosts = tuple(_host(scheme, part) for part in parts)
        database = int(_common_value("database", [part.path.strip("/") for part in parts]) or 0)
    return RedisAddress(
        scheme=scheme,
        hosts=hosts,
        path=path,
        database=database,
        username=unquote(_common_value("user name", [part.username or "" for part in parts])),
        password=unquote(_common_value("password", [part.password or "" for part in parts])),
        verification=_one_of("ssl_cert_reqs", options, VERIFICATION, "required"),
        check_hostname=_one_of("ssl_check_hostname", options, BOOLEANS, default=True),
        certificate_file=options.get("ssl_certfile", ""),
        key_file=options.get("ssl_keyfile", ""),
        health_check_seconds=_health_check(options),
        options=tuple(sorted(options)),
    )


def _split(text: str) -> SplitResult:
    """Parses one URL. The URL may contain the password, so errors do not repeat it."""
    try:
        url = urlsplit(text.strip())
        known = url.scheme in list(Scheme) and url.port != 0
    except ValueError:  # a non-numeric port, or an unclosed bracket
        known = False
    if not known or url.fragment or not re.fullmatch(r"[\w.:%-]*", url.hostname or ""):
        raise InvalidAddress(f"is not of the form {FORM}")
    if url.scheme == Scheme.SOCKET:
        if url.hostname or len(url.path) < 2:
            raise InvalidAddress("redis+socket:// needs an absolute path, as in redis+socket:///run/redis.sock")
    elif not re.fullmatch(r"/?\d*", url.path):
        raise InvalidAddress(f"is not of the form {FORM}")
    return url


def _host(scheme: Scheme, url: SplitResult) -> tuple[str, int]:
    return url.hostname or "localhost", url.port or (SENTINEL_PORT if scheme is Scheme.SENTINEL else REDIS_PORT)


def _options(parts: list[SplitResult]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in parts:
        for name, value in parse_qsl(part.query, keep_blank_values=True):
            if found.setdefault(name, value) != value:
                raise InvalidAddress(f"{name} is given twice, with different values")
    return found


def _refuse_unknown(scheme: Scheme, options: Mapping[str, str]) -> None:
    for name in sorted(options):
        if name in SETTING_BY_OPTION:
            raise InvalidAddress(
                f"the option {name} is not supported: set REPLAYS_{SETTING_BY_OPTION[name]} instead"
            )
        if name in SOCKET_DATABASE and scheme is not Scheme.SOCKET:
            raise InvalidAddress(
                f"the option {name} is not supported: the database is the path, as in {scheme}://host/3"
            )
        if name not in (*OPTIONS, *SOCKET_DATABASE):
            raise InvalidAddress(f"the option {name} is not supported; those that are: {', '.join(OPTIONS)}")
        if name in TLS_OPTIONS and scheme in (Scheme.PLAIN, Scheme.SOCKET):
            raise InvalidAddress(f"the option {name} needs TLS, which {scheme}:// does not have")


def _socket_database(options: Mapping[str, str]) -> int:
    text = _common_value("database", [options.get(name, "") for name in SOCKET_DATABASE]) or "0"
    if not text.isdecimal():
        raise InvalidAddress("virtual_host has to be the number of a database")
    return int(text)


def _common_value(what: str, values: list[str]) -> str:
    """Returns the one value that was given; "" if there is none. Raises InvalidAddress if the values differ."""
    distinct = sorted({value for value in values if value})
    if len(distinct) > 1:
        raise InvalidAddress(f"has more than one {what}")
    return distinct[0] if distinct else ""


def _one_of(name: str, options: Mapping[str, str], allowed: Mapping[str, Value], default: Value) -> Value:
    if name not in options:
        return default
    found = allowed.get(options[name], allowed.get(options[name].lower()))
    if found is None:
        raise InvalidAddress(f"{name} has to be one of {', '.join(allowed)}")
    return found


def _health_check(options: Mapping[str, str]) -> int:
    text = options.get("health_check_interval", str(HEALTH_CHECK_SECONDS))
    if not text.isdecimal() or not 1 <= int(text) <= 3600:
        raise InvalidAddress("health_check_interval has to be 1 to 3600 seconds")
    return int(text)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
