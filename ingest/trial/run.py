"""Starts everything for `replays-ingest try`, and stops it: stack, worker, reader, Flower, web pages, endpoint.

The stack is temporary: a separate process (`ingest/local/servers/watchdog.py`) removes the stack's processes and
data, even if this process is killed. The web pages and the endpoint run in this process and share one login.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ingest.local.launch import SHORT_TIMEOUTS, settings_of
from ingest.local.programs import LOGIN_VARIABLE, WEB_PORT, Programs, is_free, login_of
from ingest.local.servers.processes import HOST, LocalError, ending_on_signals, free_port
from ingest.local.stack import Stack
from ingest.trial import server
from ingest.trial.endpoint.handler import Endpoint
from ingest.trial.endpoint.messages import Project
from ingest.trial.endpoint.refusals import RequestRefused
from ingest.trial.sessions import SESSIONS_MAX, Progress, Sessions
from ingest.trial.shop import Trial
from ingest.web.login import Login
from ingest.web.reads import Reads
from ingest.web.server import serve as serve_pages
from tasks.kafka.producing import AcknowledgedProducer

ANY_HOST = "0.0.0.0"
PORT = 8090
PROJECT_ID = 1
PROGRAMS = ("worker", "reader", "flower")
REFUSALS_SHOWN_MAX = 50
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ReadyTrial:
    """The output of `--json`: the one-time link to the shop, addresses, the login for Flower and the operator's
    page, and the startup time in seconds."""

    link: str
    dsn: str
    shop: str
    replays: str
    flower: str
    login: str
    directory: str
    settings: Mapping[str, str]
    seconds: float


@dataclass(frozen=True, slots=True)
class Options:
    """The listen address and the time limit. If `host` is not a loopback address, other machines can reach the
    endpoint."""

    host: str = HOST
    port: int = PORT
    seconds: float | None = None


def run(options: Options, *, say: Say, as_json: Callable[[Any], None] | None = None) -> None:
    """Runs until Ctrl-C, SIGTERM or the end of `options.seconds`. Raises LocalError if something did not start.

    `say` prints a line of text; `as_json` prints the state as JSON, once, when everything is up.
    """
    began = time.monotonic()
    with ending_on_signals() as ending:
        try:
            sockets = _bound(options)
            with Stack(progress=say) as stack:
                stack.start()
                programs = _programs(stack, say, ending)
                try:
                    programs.start()
                    running = _RunningTrial(stack, programs, options, sockets[0].getsockname()[1], say)
                    running.announce(time.monotonic() - began, as_json)
                    asyncio.run(running.serve(sockets, ending, options.seconds))
                    say("stopping")
                finally:
                    programs.stop()
        except LocalError:
            if not ending.is_set():
                raise
    say("everything is stopped and removed")


def _bound(options: Options) -> list[socket.socket]:
    """Opens the endpoint's sockets before anything else starts."""
    try:
        return server.bound(options.host, options.port)
    except OSError as error:
        why = error.strerror or str(error)
        raise LocalError(
            f"cannot listen on {options.host}:{options.port}: {why}; choose another --host or --port"
        ) from None


def _programs(stack: Stack, say: Say, ending: threading.Event) -> Programs:
    environment = {**SHORT_TIMEOUTS, **stack.settings(), LOGIN_VARIABLE: login_of(stack.directory)}
    return Programs(stack, environment, {}, progress=say, ending=ending.is_set, chosen=PROGRAMS)


class _RunningTrial:
    """The web pages and the endpoint, which need the running programs."""

    def __init__(self, stack: Stack, programs: Programs, options: Options, port: int, say: Say) -> None:
        self._say = say
        self._refusals = 0
        self._seen: OrderedDict[str, int] = OrderedDict()
        self.stack = stack
        self.login_text = login_of(stack.directory)
        self.flower = programs.addresses["flower"]
        # The pages link to Flower, whose port may differ from the preferred port.
        flower_port = self.flower.rpartition(":")[2]
        self.environment = {**SHORT_TIMEOUTS, **stack.settings(), LOGIN_VARIABLE: self.login_text}
        self.settings = settings_of({**self.environment, "REPLAYS_FLOWER_PORT": flower_port})
        self.web_port = WEB_PORT if is_free(WEB_PORT) else free_port()
        self.shop = f"http://{options.host if options.host != ANY_HOST else HOST}:{port}"
        self.login = Login(
            self.settings,
            on_new_link=lambda path: say(f"another browser  {self.shop}{path}"),
            command="replays-ingest try",
        )
        self.trial = self._trial(options)

    def _trial(self, options: Options) -> Trial:
        key = secrets.token_hex(16)
        producer = AcknowledgedProducer(self.settings)
        topic = self.settings.kafka_topic
        names = server.LOOPBACK if options.host in server.LOOPBACK else frozenset()
        sessions = Sessions(self.settings, PROJECT_ID)

        def produce(value: bytes) -> None:
            producer.produce(topic, None, value, ())

        return Trial(
            endpoint=Endpoint(Project(PROJECT_ID), key, produce, sessions.add, self._refused, names),
            sessions=sessions,
            reads=Reads(self.settings),
            login=self.login,
            names=names,
            dsn=f"{self.shop.replace('://', f'://{key}@')}/{PROJECT_ID}",
            web_address=f"http://{HOST}:{self.web_port}",
            cookie=f"replays_{self.web_port}",
            ready=self._ready,
        )

    def announce(self, seconds: float, as_json: Callable[[Any], None] | None) -> None:
        """Prints links, addresses and the DSN."""
        trial = self.trial
        ready = ReadyTrial(
            link=f"{self.shop}{self.login.link}",
            dsn=trial.dsn,
            shop=self.shop,
            replays=trial.web_address,
            flower=self.flower,
            login=self.login_text,
            directory=str(self.stack.directory),
            settings=self.environment,
            seconds=round(seconds, 1),
        )
        if as_json is not None:
            as_json(asdict(ready))
            return
        user, _, password = self.login_text.partition(":")
        for line in (
            "",
            f'Everything is up after {seconds:.1f} s. Open this link, use the shop, press "Watch yourself":',
            f"  {ready.link}",
            "",
            "To record your own app, give its SDK this DSN:",
            f"  {ready.dsn}",
            "This endpoint is not Relay: it scrubs no personal data, has no quotas, and drops errors and traces.",
            "",
            f"replays          {ready.replays} (after the link, or with the login below)",
            f"operator's page  {ready.replays}/operate (with the login below)",
            f"Flower           {ready.flower} (with the login below)",
            f"login            user {user}, password {password}",
            f"logs             {self.stack.directory / 'logs'}",
            "",
            "Ctrl-C stops everything and removes the data.",
        ):
            self._say(line)

    async def serve(
        self, sockets: Sequence[socket.socket], ending: threading.Event, seconds: float | None
    ) -> None:
        """Serves the pages and the endpoint until `ending` is set, or for `seconds`."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        pages = serve_pages(self.settings, self.web_port, lambda address, path: None, stop, login=self.login)
        servers = asyncio.gather(pages, server.serve(self.trial, sockets, stop))
        try:
            waiting = loop.run_in_executor(None, ending.wait, seconds)
            await asyncio.wait((waiting, servers), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.set()
            stop.set()
            await servers
            self.trial.reads.close()

    def _refused(self, error: RequestRefused) -> None:
        self._refusals += 1
        if self._refusals <= REFUSALS_SHOWN_MAX:
            self._say(f"refused: {error}")
        if self._refusals == REFUSALS_SHOWN_MAX:
            self._say("further refusals are only counted")

    def _ready(self, replay_id: str, found: Progress) -> None:
        """Prints one line when a session is ready to be watched, and again if more segments arrive."""
        if self._seen.get(replay_id) == found.received:
            return
        self._seen[replay_id] = found.received
        while len(self._seen) > SESSIONS_MAX:
            self._seen.popitem(last=False)
        segments = f"{found.received} segment{'s' if found.received > 1 else ''}"
        self._say(
            f"replay {replay_id}: {segments} in every sink {found.ready_seconds:.1f} s after the last one arrived"
        )
