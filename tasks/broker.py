"""The transport of Celery's messages: kombu's Redis transport over the connections of `tasks.connection`.

kombu treats READONLY as a channel error, on which a worker exits; here it is a connection error, after which a
worker reconnects. kombu also parses URLs differently, so it gets a `Link` in its transport options, for TCP, TLS,
Unix sockets and Sentinel.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from kombu.transport import redis
from redis import ConnectionPool

from tasks.connection import Link, prove_writable

TRANSPORT = f"{__name__}:Transport"
LINK_OPTION = "link"
PROBE_KEY = "probe"


class _Client(redis.PrefixedStrictRedis):
    """Opens a channel only to a writable server, because a replica also answers PING."""

    def ping(self, **_: Any) -> bool:
        """Called by kombu when a channel opens. Raises RedisAway."""
        prove_writable(self, PROBE_KEY)
        return True


class Channel(redis.Channel):
    """kombu's channel; its two pools come from the link."""

    link: Link
    from_transport_options = (*redis.Channel.from_transport_options, LINK_OPTION)

    def _get_pool(self, asynchronous: bool = False) -> ConnectionPool:
        """`asynchronous`: for connections polled by the event loop, which must learn when one is closed."""
        self.keyprefix_fanout = self.keyprefix_fanout.format(db=self.link.address.database)
        # kombu and Celery retry themselves, and know what may be sent twice.
        pool = self.link.pool(0, self._polled if asynchronous else lambda kind: kind)
        manager = getattr(pool, "sentinel_manager", None)
        if asynchronous:
            self._async_sentinel_manager = manager  # both are closed with the channel
        else:
            self._sentinel_manager = manager
        return pool

    def _get_client(self) -> Any:
        return partial(_Client, global_keyprefix=self.global_keyprefix)

    def _polled(self, kind: type[Any]) -> type[Any]:
        channel: Any = self

        class Polled(kind):  # type: ignore[misc]
            def disconnect(self, *args: Any, **kwargs: Any) -> None:
                super().disconnect(*args, **kwargs)
                if channel._registered:
                    channel._on_connection_disconnect(self)

        return Polled


class Transport(redis.Transport):
    """kombu's transport with our channel."""

    Channel = Channel
    can_parse_url = True  # the URL is only a label

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """The address without a password."""
        connection: Any = self.client
        link: Link = connection.transport_options[LINK_OPTION]
        return link.address.shown
