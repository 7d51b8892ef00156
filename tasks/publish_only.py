"""A result backend that counts chords and stores no results (docs/decisions/029-chords-keep-no-results.md).

Celery's Redis backend keeps state for every published chord (four results and four subscriptions each) until its
result is read, which never happens here because completions use the reader's stream. That state would grow without
bound, and a Redis outage would then cause an error that only a restart clears.
"""

from __future__ import annotations

from typing import Any, cast

from celery.backends.redis import RedisBackend
from celery.loaders.base import BaseLoader
from redis import ConnectionPool

from tasks.broker import LINK_OPTION
from tasks.connection import Link

# URL scheme `publish-only+redis://...`, registered when this module is imported.
BACKEND = "publish-only"
BaseLoader.override_backends[BACKEND] = "tasks.publish_only:PublishOnlyBackend"


# Maximum retries of a Redis command, for example during a failover. If the command that counts a finished task of
# a chord were lost, the batch would be delayed until its deadline.
RETRIES = 3


class PublishOnlyBackend(RedisBackend):
    """A Redis backend for chord counters only, without subscriptions.

    Connections are created from the `Link` in the backend's transport options, as the broker's connections are.
    The backend's URL is only a label.
    """

    @property
    def link(self) -> Link:
        """Parameters of the connection to Redis."""
        backend: Any = self
        return cast("Link", backend.app.conf.result_backend_transport_options[LINK_OPTION])

    def _get_pool(self, **params: Any) -> ConnectionPool:
        return self.link.pool(RETRIES)

    def as_uri(self, include_password: bool = False) -> str:
        """Returns the address for display, which never contains a password."""
        return self.link.address.shown

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Does nothing, because there are no subscriptions."""

    def add_pending_result(self, result: Any, weak: bool = False, start_drainer: bool = True) -> Any:
        """Does nothing, because no result is read."""
        return result

    def add_pending_results(self, results: Any, weak: bool = False) -> None:
        """Does nothing, because no result is read."""

    def remove_pending_result(self, result: Any) -> Any:
        """Does nothing, because no result is stored."""
        return result
