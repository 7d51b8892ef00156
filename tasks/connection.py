"""How to reach Redis: every client of readers, workers and commands is made here."""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from tasks.settings import Settings

CONNECT_SECONDS_MAX = 3.0
HEALTH_CHECK_SECONDS = 25


def connect(settings: Settings, *, retries: int = 1) -> Redis[bytes]:
    """A client that answers or raises: each call is bounded by `redis_timeout_seconds`, `retries` times more.

    Nothing is decoded: values are bytes.
    """
    options: dict[str, Any] = {}
    url = settings.redis_url.get_secret_value()
    if url.startswith("rediss://") and settings.redis_tls_ca_file is not None:
        options["ssl_ca_certs"] = str(settings.redis_tls_ca_file)
    return Redis.from_url(
        url,
        socket_timeout=settings.redis_timeout_seconds,
        socket_connect_timeout=min(CONNECT_SECONDS_MAX, settings.redis_timeout_seconds),
        socket_keepalive=True,
        health_check_interval=HEALTH_CHECK_SECONDS,
        retry=Retry(ExponentialBackoff(cap=1.0, base=0.05), retries),
        **options,
    )
