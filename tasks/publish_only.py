"""A result backend that counts chords and keeps no results (docs/decisions/029-chords-keep-no-results.md).

Celery's Redis backend remembers every chord that it publishes (four results and four subscriptions each) until
somebody asks for its outcome, which nobody here ever does: completions travel on the reader's stream. Kept, they
would grow without bound, and would turn an outage of Redis into an error that only a restart cures.
"""

from __future__ import annotations

from typing import Any, cast

from celery.backends.redis import RedisBackend
from celery.loaders.base import BaseLoader
from redis import ConnectionPool

from tasks.broker import LINK_OPTION
from tasks.connection import Link

# The scheme of its URLs: `publish-only+redis://...`. Known to every app once this module is imported.
BACKEND = "publish-only"
BaseLoader.override_backends[BACKEND] = "tasks.publish_only:PublishOnlyBackend"


# Counting a chord is worth some patience during a failover: a count that is missed costs the batch its deadline.
RETRIES = 3


class PublishOnlyBackend(RedisBackend):
    """Redis for chord counters; nothing is subscribed to and nothing is waited for.

    Its connections come from the link among its transport options, as the broker's do; its URL is only a label.
    """

    @property
    def link(self) -> Link:
        """How to reach Redis."""
        backend: Any = self
        return cast("Link", backend.app.conf.result_backend_transport_options[LINK_OPTION])

    def _get_pool(self, **params: Any) -> ConnectionPool:
        return self.link.pool(RETRIES)

    def as_uri(self, include_password: bool = False) -> str:
        """The address as people may see it; there is never a password in it."""
        return self.link.address.shown

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """No subscription."""

    def add_pending_result(self, result: Any, weak: bool = False, start_drainer: bool = True) -> Any:
        """Not remembered."""
        return result

    def add_pending_results(self, results: Any, weak: bool = False) -> None:
        """Not remembered."""

    def remove_pending_result(self, result: Any) -> Any:
        """There is none."""
        return result
