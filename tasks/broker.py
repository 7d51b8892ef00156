"""The transport of Celery's messages: kombu's Redis transport over the connections of `tasks.connection`.

kombu treats READONLY as a channel error, on which a worker exits; this transport treats it as a connection error,
after which a worker reconnects. If the acknowledgement of a message fails, kombu counts the message as unfinished
for as long as the channel exists; this transport does not (`QoS`). kombu does not support the same URLs as
`tasks.redis_address`, so this transport connects through the `Link` in its transport options, which supports TCP,
TLS, Unix sockets and Sentinel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

from kombu.transport import redis, virtual
from redis import ConnectionPool

from tasks.connection import Link, prove_writable

TRANSPORT = f"{__name__}:Transport"
LINK_OPTION = "link"
PROBE_KEY = "probe"


class _Client(redis.PrefixedStrictRedis):
    """Opens a channel only to a writable server. A PING is not enough, because a replica also answers it."""

    def ping(self, **_: Any) -> bool:
        """Called by kombu when a channel opens. Raises RedisUnavailable."""
        prove_writable(self, PROBE_KEY)
        return True

    def transaction(self, func: Callable[[Any], Any], *watches: Any, **options: Any) -> Any:
        """Raises RedisUnavailable if the server is unusable. Without this check, redis-py would treat the
        server's error as a conflict and retry forever.
        """
        attempts = count()

        def attempt(pipe: Any) -> Any:
            if next(attempts):
                prove_writable(self, PROBE_KEY)
            return func(pipe)

        return super().transaction(attempt, *watches, **options)  # type: ignore[no-untyped-call]


class QoS(redis.QoS):
    """Counts unfinished messages as kombu does, but leaves out messages whose acknowledgement failed.

    Celery only logs a failed acknowledgement. If a message whose acknowledgement failed still counted towards the
    prefetch limit, the worker would stop consuming permanently after as many such failures as it has processes,
    even if the connection works again. In Redis the message stays unacknowledged and is delivered again after the
    visibility timeout.
    """

    def ack(self, delivery_tag: str) -> None:
        """Raises the errors of the connection, including RedisUnavailable."""
        with self._finish_on_error(delivery_tag):
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Like `ack`."""
        with self._finish_on_error(delivery_tag):
            super().reject(delivery_tag, requeue)

    @contextmanager
    def _finish_on_error(self, delivery_tag: str) -> Iterator[None]:
        try:
            yield
        except Exception:
            virtual.QoS.ack(self, delivery_tag)
            raise


class Channel(redis.Channel):
    """kombu's channel, with two connection pools created from the `Link` in the transport options."""

    QoS = QoS
    link: Link
    from_transport_options = (*redis.Channel.from_transport_options, LINK_OPTION)

    def _get_pool(self, asynchronous: bool = False) -> ConnectionPool:
        """`asynchronous`: for connections polled by the event loop, which must be notified when one is closed."""
        self.keyprefix_fanout = self.keyprefix_fanout.format(db=self.link.address.database)
        # This pool does not retry, because kombu and Celery do, and they know which commands may be sent twice.
        pool = self.link.pool(0, self._notifying_class if asynchronous else lambda kind: kind)
        manager = getattr(pool, "sentinel_manager", None)
        if asynchronous:
            self._async_sentinel_manager = manager  # both pools are closed with the channel
        else:
            self._sentinel_manager = manager
        return pool

    def _get_client(self) -> Any:
        return partial(_Client, global_keyprefix=self.global_keyprefix)

    def _notifying_class(self, kind: type[Any]) -> type[Any]:
        channel: Any = self

        class PolledConnection(kind):  # type: ignore[misc]
            def disconnect(self, *args: Any, **kwargs: Any) -> None:
                super().disconnect(*args, **kwargs)
                if channel._registered:
                    channel._on_connection_disconnect(self)

        return PolledConnection


class Transport(redis.Transport):
    """A kombu transport that uses our channel."""

    Channel = Channel
    can_parse_url = True  # the URL is only a label

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """Returns the address for logs, without the password."""
        connection: Any = self.client
        link: Link = connection.transport_options[LINK_OPTION]
        return link.address.shown
