"""The web server, for browsers on this machine.

Listens on the loopback interface only, and refuses requests for host names other than localhost and 127.0.0.1, to
prevent DNS rebinding. Other users of the machine can reach the server, so every request requires a login.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tornado import httpserver, netutil, web

from ingest.settings import Settings
from ingest.web import api, operator, pages
from ingest.web.base import NotFoundHandler, State
from ingest.web.login import Login
from ingest.web.operator_service import OperatorService
from ingest.web.reads import Reads
from tasks.units import KiB

HOST = "127.0.0.1"
THREADS = 6
BODY_BYTES_MAX = 256 * KiB
HEADER_BYTES_MAX = 32 * KiB
# Timeout for a complete request, so that idle clients cannot hold connections open.
REQUEST_SECONDS_MAX = 30.0
PATH = r"/api/replays/([0-9]{1,20})/([0-9a-fA-F-]{32,36})"


def application(state: State) -> web.Application:
    """Returns the routes."""
    given = {"state": state}
    return web.Application(
        [
            (r"/", pages.PageHandler, {**given, "page": "list.html"}),
            (r"/replay/[0-9]{1,20}/[0-9a-f]{32}", pages.PageHandler, {**given, "page": "replay.html"}),
            (r"/operate", operator.OperatorPageHandler, {**given, "page": "operate.html"}),
            (r"/runbook", operator.OperatorPageHandler, {**given, "page": "runbook.html"}),
            (r"/login", pages.LoginHandler, given),
            (r"/static/([a-zA-Z/.-]{1,64})", pages.StaticHandler, given),
            (r"/api/projects", api.ProjectsHandler, given),
            (r"/api/replays", api.ReplaysHandler, given),
            (PATH, api.ReplayHandler, given),
            (PATH + r"/timeline", api.TimelineHandler, given),
            (PATH + r"/recording", api.RecordingHandler, given),
            (PATH + r"/segments/([0-9]{1,18})", api.SegmentHandler, given),
            (PATH + r"/segments/([0-9]{1,18})/video", api.VideoHandler, given),
            (r"/api/operate", operator.OverviewHandler, given),
            (r"/api/operate/trend", operator.TrendHandler, given),
            (r"/api/operate/batches/(retry|abandon)", operator.BatchHandler, given),
            (r"/api/operate/letters", operator.DeadLettersHandler, given),
        ],
        default_handler_class=NotFoundHandler,
        default_handler_args=given,
        log_function=lambda handler: None,
    )


async def serve(
    settings: Settings,
    port: int,
    ready: Callable[[str, str], None],
    stop: asyncio.Event,
    *,
    login: bool | Login = True,
) -> None:
    """Listens until `stop` is set. Raises OSError if the port is in use.

    `ready` is called with the address and the path of the one-time link: at startup, and again after each use.
    `login`: False disables the login. Pass a Login object to share one login with another server of this process;
    the Login object then reports new links itself, and `ready` is called only at startup.
    """
    sockets = netutil.bind_sockets(port, HOST, family=socket.AF_INET)
    port = sockets[0].getsockname()[1]
    address = f"http://{HOST}:{port}"
    doors = (
        login
        if isinstance(login, Login)
        else Login(settings, is_open=not login, on_new_link=lambda path: ready(address, path))
    )
    with ThreadPoolExecutor(THREADS, thread_name_prefix="web") as pool:
        state = State(settings, Reads(settings), OperatorService(settings), pool, doors, port)
        server = httpserver.HTTPServer(
            application(state),
            max_body_size=BODY_BYTES_MAX,
            max_header_size=HEADER_BYTES_MAX,
            idle_connection_timeout=REQUEST_SECONDS_MAX,
            body_timeout=REQUEST_SECONDS_MAX,
        )
        server.add_sockets(sockets)
        ready(address, doors.link)
        try:
            await stop.wait()
        finally:
            server.stop()
            await server.close_all_connections()
            state.reads.close()
            state.operator_service.close()


def run(settings: Settings, port: int, ready: Callable[[str, str], None], *, login: bool = True) -> None:
    """Serves until SIGTERM or Ctrl-C. `ready` is as in `serve`. Raises OSError if the port is in use."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await serve(settings, port, ready, stop, login=login)

    asyncio.run(main())
