"""The HTTP server for the endpoint and the shop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from tornado import httpserver, netutil, web

from ingest.trial import shop
from ingest.trial.endpoint.body import BODY_BYTES_MAX
from ingest.trial.endpoint.handler import EnvelopeHandler
from ingest.trial.shop import Trial
from tasks.units import KiB

LOOPBACK = frozenset(("127.0.0.1", "localhost"))
HEADER_BYTES_MAX = 32 * KiB
# Timeout for a complete request, so that idle clients cannot hold connections and memory.
REQUEST_SECONDS_MAX = 30.0
REPLAY = r"([0-9a-f]{32})"


def application(trial: Trial) -> web.Application:
    """Returns the routes."""
    given = {"trial": trial}
    return web.Application(
        [
            (r"/api/([0-9]{1,20})/envelope/?", EnvelopeHandler, {"endpoint": trial.endpoint}),
            (r"/", shop.ShopHandler, given),
            (r"/login", shop.LoginHandler, given),
            (r"/static/([a-zA-Z/.-]{1,64})", shop.StaticHandler, given),
            (r"/shop/items", shop.ItemsHandler, given),
            (r"/shop/cart", shop.CartHandler, given),
            (r"/shop/checkout", shop.CheckoutHandler, given),
            (rf"/watch/{REPLAY}", shop.WatchHandler, given),
            (rf"/watch/{REPLAY}/progress", shop.ProgressHandler, given),
            (r"/counts", shop.CountsHandler, given),
        ],
        default_handler_class=shop.NotFoundHandler,
        default_handler_args=given,
        log_function=lambda handler: None,
    )


def bound(host: str, port: int) -> list[socket.socket]:
    """Returns listening sockets; port 0 picks a free one. Raises OSError."""
    return netutil.bind_sockets(port, host, family=socket.AF_INET)


async def serve(trial: Trial, sockets: Sequence[socket.socket], stop: asyncio.Event) -> None:
    """Serves until `stop` is set."""
    server = httpserver.HTTPServer(
        application(trial),
        max_body_size=BODY_BYTES_MAX,
        max_header_size=HEADER_BYTES_MAX,
        idle_connection_timeout=REQUEST_SECONDS_MAX,
        body_timeout=REQUEST_SECONDS_MAX,
    )
    server.add_sockets(sockets)
    try:
        await stop.wait()
    finally:
        server.stop()
        await server.close_all_connections()
        trial.endpoint.close()
