"""The endpoint over HTTP: keys, CORS, limits, counters.

As with Relay, any page may send requests; the key in the DSN, which is created at startup, keeps out other
senders. Memory is bounded: bodies that are being received share BUFFERED_BYTES_MAX, and only a few are parsed at
once.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tornado import web

from ingest.trial.endpoint.body import BODY_BYTES_MAX, decompressed
from ingest.trial.endpoint.envelope import Envelope, split
from ingest.trial.endpoint.messages import ProducedMessage, Project, ignored, message
from ingest.trial.endpoint.refusals import Reason, RequestRefused
from ingest.trial.endpoint.replay_event import Client
from tasks.kafka.producing import NotProduced
from tasks.units import MiB

BUFFERED_BYTES_MAX = 200 * MiB
HEAVY_REQUESTS_MAX = 2
KEY_CHARACTERS_MAX = 64
RETRY_SECONDS = 5
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST",
    "Access-Control-Allow-Headers": "X-Sentry-Auth, X-Requested-With, Origin, Accept, Content-Type, "
    "Content-Encoding, Authentication, Authorization, sentry-trace, baggage",
    "Access-Control-Expose-Headers": "X-Sentry-Error, X-Sentry-Rate-Limits, Retry-After",
    "Access-Control-Max-Age": "3600",
    "Cross-Origin-Resource-Policy": "cross-origin",
}
_key_in_header = re.compile(r"sentry_key\s*=\s*([0-9A-Za-z]{1,64})")


@dataclass
class Endpoint:
    """State of the endpoint.

    `produce` writes one Kafka value and returns when the value is acknowledged, or raises NotProduced. `received`
    is called for each segment that Kafka has acknowledged, and `refused` for each refusal. `names`: accepted host
    names; if empty, any host name is accepted.
    """

    project: Project
    key: str
    produce: Callable[[bytes], None]
    received: Callable[[ProducedMessage], None]
    refused: Callable[[RequestRefused], None] = lambda error: None
    names: frozenset[str] = frozenset()
    clock: Callable[[], float] = time.time
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(HEAVY_REQUESTS_MAX, "envelopes"))
    kafka: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "kafka"))
    segments: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    buffered_bytes: int = 0

    def counts(self) -> dict[str, Any]:
        """Returns the counters since startup."""
        return {"segments": self.segments, "refused": dict(self.refusals), "ignored_items": dict(self.ignored)}

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
        self.kafka.shutdown(cancel_futures=True)

    def require_key(self, given: str) -> None:
        """Raises RequestRefused if the key is not the key in the DSN."""
        if not hmac.compare_digest(given.encode(), self.key.encode()):
            raise RequestRefused(
                Reason.UNKNOWN_KEY, "the key is not the one in the DSN that this endpoint printed"
            )


@web.stream_request_body
class EnvelopeHandler(web.RequestHandler):
    """`POST /api/PROJECT/envelope/`. Responds with 200 once Kafka has acknowledged the replay in the envelope."""

    def initialize(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.reserved_bytes = 0
        self.body = bytearray()

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        for name, value in CORS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        """Checks the headers before the body is received."""
        try:
            self._require_host_and_project()
            if self.request.method == "POST":
                self._reserve()
        except RequestRefused as error:
            self._refuse(error)
            self.set_header("Connection", "close")
            self.finish()

    def data_received(self, chunk: bytes) -> None:
        if len(self.body) <= BODY_BYTES_MAX:
            self.body += chunk

    def options(self, project: str) -> None:
        """Responds to a browser's CORS preflight request."""
        if self.request.headers.get("Access-Control-Request-Private-Network") == "true":
            self.set_header("Access-Control-Allow-Private-Network", "true")
        self.set_status(204)

    async def post(self, project: str) -> None:
        loop = asyncio.get_running_loop()
        endpoint, client = self.endpoint, self._client()
        encoding = self.request.headers.get("Content-Encoding", "")
        key = self._key()
        try:
            envelope, found = await loop.run_in_executor(
                endpoint.pool, lambda: self._parse_in_thread(bytes(self.body), encoding, key, client)
            )
            endpoint.ignored += ignored(envelope)
            if found is not None:
                await self._produce(found)
        except RequestRefused as error:
            self._refuse(error)
            return
        self._respond({"id": envelope.event_id} if envelope.event_id else {})

    def on_finish(self) -> None:
        self._release()

    def on_connection_close(self) -> None:
        self._release()

    def _release(self) -> None:
        self.endpoint.buffered_bytes -= self.reserved_bytes
        self.reserved_bytes = 0

    def _reserve(self) -> None:
        """Reserves memory for the body. Raises RequestRefused with the reason body_too_large or busy."""
        length = self.request.headers.get("Content-Length", "")
        announced = int(length) if length.isascii() and length.isdecimal() else BODY_BYTES_MAX
        if announced > BODY_BYTES_MAX:
            raise RequestRefused(Reason.BODY_TOO_LARGE, f"the body exceeds {BODY_BYTES_MAX} bytes")
        if self.endpoint.buffered_bytes + announced > BUFFERED_BYTES_MAX:
            raise RequestRefused(Reason.BUSY, "too many requests at once; send again later")
        self.endpoint.buffered_bytes += announced
        self.reserved_bytes = announced

    def _require_host_and_project(self) -> None:
        names = self.endpoint.names
        if names and self.request.host_name not in names:
            raise RequestRefused(
                Reason.UNKNOWN_HOST, f"this endpoint only accepts requests for {' and '.join(sorted(names))}"
            )
        if self.path_args and self.path_args[0] != str(self.endpoint.project.project_id):
            text = (
                f"the project is not {self.endpoint.project.project_id}, as in the DSN that this endpoint printed"
            )
            raise RequestRefused(Reason.UNKNOWN_PROJECT, text)

    def _key(self) -> str:
        """Returns the key in the query or in a header; "" if neither has one."""
        in_query = self.get_query_argument("sentry_key", "")
        if in_query:
            return in_query[:KEY_CHARACTERS_MAX]
        for name in ("X-Sentry-Auth", "Authorization"):
            found = _key_in_header.search(self.request.headers.get(name, ""))
            if found:
                return found[1]
        return ""

    def _client(self) -> Client:
        request = self.request
        user_agent = request.headers.get("User-Agent", "")
        return Client(request.remote_ip or "127.0.0.1", user_agent, self.endpoint.clock())

    def _parse_in_thread(
        self, body: bytes, encoding: str, key: str, client: Client
    ) -> tuple[Envelope, ProducedMessage | None]:
        """Runs in a thread."""
        if key:
            self.endpoint.require_key(key)
        envelope = split(decompressed(body, encoding))
        if not key:
            self.endpoint.require_key(_key_of(envelope.dsn))
        return envelope, message(envelope, self.endpoint.project, client)

    async def _produce(self, found: ProducedMessage) -> None:
        endpoint = self.endpoint
        try:
            await asyncio.get_running_loop().run_in_executor(endpoint.kafka, endpoint.produce, found.value)
        except NotProduced:
            raise RequestRefused(Reason.KAFKA, "Kafka did not acknowledge the message; send again later") from None
        endpoint.segments += 1
        endpoint.received(found)

    def _refuse(self, error: RequestRefused) -> None:
        self.endpoint.refusals[error.reason.label] += 1
        self.endpoint.refused(error)
        self.set_status(error.reason.status)
        self.set_header("X-Sentry-Error", str(error))
        if error.reason.status == 503:
            self.set_header("Retry-After", str(RETRY_SECONDS))
        self._respond({"detail": str(error)})

    def _respond(self, value: Any) -> None:
        self.set_header("Content-Type", "application/json")
        self.write(json.dumps(value))


def _key_of(dsn: str) -> str:
    """Returns the key in a DSN; "" if there is none."""
    try:
        return (urlsplit(dsn[:1000]).username or "")[:KEY_CHARACTERS_MAX]
    except ValueError:
        return ""
