"""The address of Redis is parsed in one place: each option either works everywhere or is refused."""

from __future__ import annotations

from typing import Any

import certifi
import pytest

from tasks.configuration import configuration
from tasks.loading import SettingsError, load_fleet
from tasks.redis_address import InvalidAddress, RedisAddress, Scheme, parse

ACCEPTED = {
    "redis://": RedisAddress(Scheme.PLAIN, (("localhost", 6379),)),
    "redis://h:1/3": RedisAddress(Scheme.PLAIN, (("h", 1),), database=3),
    "redis://me:p%40ss@h": RedisAddress(Scheme.PLAIN, (("h", 6379),), username="me", password="p@ss"),
    "redis://h?health_check_interval=9": RedisAddress(
        Scheme.PLAIN, (("h", 6379),), health_check_seconds=9, options=("health_check_interval",)
    ),
    "rediss://[::1]:1?ssl_cert_reqs=CERT_NONE&ssl_check_hostname=false": RedisAddress(
        Scheme.TLS,
        (("::1", 1),),
        verification="none",
        check_hostname=False,
        options=("ssl_cert_reqs", "ssl_check_hostname"),
    ),
    "redis+socket:///run/r.sock?virtual_host=2": RedisAddress(
        Scheme.SOCKET, path="/run/r.sock", database=2, options=("virtual_host",)
    ),
    "redis+socket://:pw@/run/r.sock": RedisAddress(Scheme.SOCKET, path="/run/r.sock", password="pw"),
    "sentinel://:pw@a;sentinel://b:1;sentinel://c/4": RedisAddress(
        Scheme.SENTINEL, (("a", 26379), ("b", 1), ("c", 26379)), database=4, password="pw"
    ),
    "sentinel://:pw@a/1;sentinel://:pw@b/1": RedisAddress(
        Scheme.SENTINEL, (("a", 26379), ("b", 26379)), database=1, password="pw"
    ),
}


@pytest.mark.parametrize("url", ACCEPTED)
def test_an_address_is_read(url: str) -> None:
    assert parse(url) == ACCEPTED[url]
    assert parse(parse(url).shown).hosts == ACCEPTED[url].hosts


REFUSED = {
    "redis://:hunter2@h?socket_timeout=1": "socket_timeout is not supported: set REPLAYS_REDIS_TIMEOUT_SECONDS",
    "redis://:hunter2@h?socket_connect_timeout=1": "REPLAYS_REDIS_TIMEOUT_SECONDS",
    "rediss://:hunter2@h?ssl_ca_certs=/ca.pem": "REPLAYS_REDIS_TLS_CA_FILE",
    "sentinel://:hunter2@h?master_name=m": "REPLAYS_REDIS_SENTINEL_MASTER",
    "redis://:hunter2@h?ssl_cert_reqs=none": "ssl_cert_reqs needs TLS",
    "rediss://:hunter2@h?ssl_cert_reqs=hunter2": "ssl_cert_reqs has to be one of",
    "redis://:hunter2@h?db=3": "the database is the path",
    "redis://:hunter2@h?max_connections=3": "max_connections is not supported",
    "redis://:hunter2@h?password=hunter2": "password is not supported",
    "redis://:hunter2@h?credential_provider=os.system": "credential_provider is not supported",
    "redis://:hunter2@h?health_check_interval=0": "1 to 3600",
    "redis://:hunter2@h?health_check_interval=5&health_check_interval=6": "twice",
    "redis://:hunter2@a;redis://:hunter2@b": "only sentinel://",
    "sentinel://:hunter2@a,b": "of the form",
    "sentinel://:hunter2@a;redis://b": "only sentinel://",
    "sentinel://:hunter2@a/1;sentinel://b/2": "more than one database",
    "sentinel://:hunter2@a;sentinel://:hunter3@b": "more than one password",
    "redis+socket://:hunter2@run/r.sock": "absolute path",
    "redis+socket:///r.sock?virtual_host=hunter2": "number of a database",
    "unix:///r.sock?password=hunter2": "of the form",
    "redis-cluster://:hunter2@h": "of the form",
    "redis://:hun#ter2@h": "of the form",
}


@pytest.mark.parametrize("url", REFUSED)
def test_options_that_some_client_ignores_are_refused_by_name(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option that some client ignores is refused with a one-line error that does not contain the password."""
    with pytest.raises(InvalidAddress, match=REFUSED[url].replace("+", r"\+")):
        parse(url)
    monkeypatch.setenv("REPLAYS_REDIS_URL", url)

    with pytest.raises(SettingsError) as refused:
        load_fleet()

    (line,) = str(refused.value).splitlines()
    assert "REPLAYS_REDIS_URL" in line
    assert "hunter2" not in line


SENTINEL = {"REDIS_URL": "sentinel://:pw@a;sentinel://b", "REDIS_SENTINEL_MASTER": "m"}
INCONSISTENT: list[tuple[dict[str, str], str]] = [
    ({"REDIS_URL": "sentinel://a"}, "REPLAYS_REDIS_SENTINEL_MASTER"),
    ({"REDIS_SENTINEL_MASTER": "m"}, "REPLAYS_REDIS_SENTINEL_MASTER is not used: remove it"),
    ({"REDIS_SENTINEL_PASSWORD": "hunter2"}, "REPLAYS_REDIS_SENTINEL_PASSWORD"),
    ({"REDIS_SENTINEL_USERNAME": "u"}, "REPLAYS_REDIS_SENTINEL_USERNAME"),
    ({"REDIS_SENTINEL_TLS": "all"}, "REPLAYS_REDIS_SENTINEL_TLS"),
    ({**SENTINEL, "REDIS_URL": "sentinel://a?ssl_cert_reqs=none"}, "REPLAYS_REDIS_SENTINEL_TLS"),
    ({"REDIS_URL": "rediss://h?ssl_certfile=/nowhere.pem"}, "ssl_certfile and ssl_keyfile: set both or none"),
    ({"REDIS_URL": "rediss://h?ssl_certfile=/nowhere.pem&ssl_keyfile=/no.key"}, "file not found"),
    ({"REDIS_TLS_CA_FILE": certifi.where()}, "REPLAYS_REDIS_TLS_CA_FILE is not used without TLS"),
]


@pytest.mark.parametrize(
    ("given", "expected"), INCONSISTENT, ids=lambda value: value if isinstance(value, str) else ""
)
def test_inconsistent_redis_settings_are_refused(
    given: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inconsistent Redis settings are refused, and the error names the setting that has no effect or is
    missing.
    """
    for name, value in given.items():
        monkeypatch.setenv(f"REPLAYS_{name}", value)

    with pytest.raises(SettingsError) as refused:
        load_fleet()

    assert expected in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("url", [url for url in ACCEPTED if not url.startswith("sentinel")])
def test_celery_options_contain_no_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLAYS_REDIS_URL", url)

    config: dict[str, Any] = configuration(load_fleet())

    assert "pw" not in repr(config)
    assert "p@ss" not in repr(config)
    assert "p%40ss" not in repr(config)


def test_celery_options_contain_no_sentinel_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery's options for Redis do not contain the password of the Sentinels, which differs from that of
    Redis.
    """
    for name, value in {**SENTINEL, "REDIS_SENTINEL_PASSWORD": "hunter2"}.items():
        monkeypatch.setenv(f"REPLAYS_{name}", value)

    config = configuration(load_fleet())

    assert "pw" not in repr(config)
    assert "hunter2" not in repr(config)
    assert "sentinel" in repr(config["broker_transport_options"])
