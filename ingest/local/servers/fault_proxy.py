"""A proxy that stands in front of a server and injects reproducible faults.

`FaultProxy` listens on its own port in front of a server and applies a fault. The fault can change at any time,
even for open connections. All random choices depend on one seed. TCP faults work with any protocol; with
`http=True`, requests are parsed. The proxy can then return errors for a share of the requests. The proxy can also
forward requests and drop the responses, so that a client cannot tell whether its write took effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from ingest.local.servers.processes import HOST, free_port

COPY_BYTES = 64 * 1024
HEAD_BYTES_MAX = 64 * 1024
START_SECONDS_MAX = 10.0
# The interval, in seconds, at which a held connection checks whether it has been released.
HOLD_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class NoFault:
    """No fault."""


@dataclass(frozen=True, slots=True)
class Hang:
    """A fault in which connections are accepted and stay open, but no bytes pass in either direction."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """A fault in which new connections are refused, and open connections are closed."""


@dataclass(frozen=True, slots=True)
class Reset:
    """A fault in which new connections are accepted and reset immediately, and open connections are also reset."""


@dataclass(frozen=True, slots=True)
class Latency:
    """A fault that delays the bytes that the client sends."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Errors:
    """An HTTP fault: for a share of the requests, the proxy sends `status` instead of forwarding the request."""

    status: int
    share: float = 1.0
    retry_after_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class SeveralErrors:
    """An HTTP fault with several errors, each of which applies to its own share of the requests.

    The shares add up to at most 1.
    """

    errors: tuple[Errors, ...]


@dataclass(frozen=True, slots=True)
class LostReplies:
    """An HTTP fault: for a share of the requests, the proxy forwards the request, but closes the connection
    instead of returning the response.
    """

    share: float = 1.0


Fault = NoFault | Hang | Refuse | Reset | Latency | Errors | SeveralErrors | LostReplies
HTTP_FAULTS = (Errors, SeveralErrors, LostReplies)


class FaultProxy:
    """A listening port in front of `target`, which is "host:port" or a URL with both.

    The proxy is a context manager and runs in a thread.

    The proxy does not work for Kafka, whose clients connect to the addresses that the broker advertises. `counts`
    has the numbers of connections, HTTP requests, and injected faults by kind.
    """

    def __init__(self, target: str, *, http: bool = False, seed: int = 0, port: int = 0) -> None:
        place = urlsplit(target if "://" in target else f"tcp://{target}")
        assert place.hostname, target
        assert place.port, target
        self._target = (place.hostname, place.port)
        self._http = http
        self._random = random.Random(seed)
        self.port = port or free_port()
        self.counts: Counter[str] = Counter()
        self._fault: Fault = NoFault()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)

    @property
    def address(self) -> str:
        """host:port."""
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """http://host:port."""
        return f"http://{self.address}"

    @property
    def fault(self) -> Fault:
        """The current fault."""
        return self._fault

    def set(self, fault: Fault) -> None:
        """Changes the fault, which takes effect before the method returns.

        Raises ValueError for an HTTP fault without http=True.
        """
        if isinstance(fault, HTTP_FAULTS) and not self._http:
            raise ValueError(f"{fault} needs http=True")
        self._call(self._set(fault))

    def set_target(self, target: str) -> None:
        """Directs new connections to another target.

        Open connections are kept, as when a service's DNS entry changes.
        """
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_SECONDS_MAX)
        self._loop.close()

    def _call(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            await work

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(START_SECONDS_MAX)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, HOST, self.port, backlog=256)

    async def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _close(self) -> None:
        await self._stop_listening()
        for connection in tuple(self._connections):
            connection.cut()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _set(self, fault: Fault) -> None:
        self._fault = fault
        if isinstance(fault, Refuse):
            await self._stop_listening()
        elif self._server is None:
            await self._listen()
        if isinstance(fault, Refuse | Reset):
            for connection in tuple(self._connections):
                connection.cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.counts["connections"] += 1
        connection = _Connection(reader, writer)
        if isinstance(self._fault, Refuse | Reset):
            self.counts["reset"] += 1
            connection.cut()
            return
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(connection)
        self._tasks.add(task)
        try:
            if self._http:
                await self._serve_http(connection)
            else:
                await self._serve_tcp(connection)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            connection.cut()
        except asyncio.CancelledError:
            connection.cut()
        finally:
            self._connections.discard(connection)
            self._tasks.discard(task)
            connection.close()

    async def _gate(self) -> None:
        """Waits until a Hang fault ends, or for the delay of a Latency fault."""
        if isinstance(self._fault, Hang):
            self.counts["held"] += 1
            while isinstance(self._fault, Hang):
                await asyncio.sleep(HOLD_SECONDS)
        if isinstance(self._fault, Latency):
            self.counts["delayed"] += 1
            await asyncio.sleep(self._fault.seconds)

    # ---- TCP

    async def _serve_tcp(self, connection: _Connection) -> None:
        """Copies bytes in both directions until both sides have stopped sending."""
        await self._gate()
        await connection.open(self._target)
        upstream = self._copy(connection.reader, connection.server_writer, self._gate)
        downstream = self._copy(connection.server_reader, connection.writer, self._hold)
        await asyncio.gather(upstream, downstream)

    async def _hold(self) -> None:
        while isinstance(self._fault, Hang):
            await asyncio.sleep(HOLD_SECONDS)

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: Callable[[], Awaitable[None]]
    ) -> None:
        while data := await reader.read(COPY_BYTES):
            await gate()
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()

    # ---- HTTP/1.1

    async def _serve_http(self, connection: _Connection) -> None:
        """Serves requests one after another, each with the current fault."""
        while True:
            head = await _head(connection.reader)
            if not head:
                return
            self.counts["requests"] += 1
            if "expect" in head.fields:
                connection.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await self._gate()
            fault = self._fault
            error = self._error(fault)
            if error is not None:
                self.counts[f"status {error.status}"] += 1
                await _body(connection.reader, head, None, is_request=True)
                connection.writer.write(_answer(error))
                await connection.writer.drain()
                continue
            await connection.open(self._target)
            connection.server_writer.write(head.raw)
            await _body(connection.reader, head, connection.server_writer, is_request=True)
            await connection.server_writer.drain()
            lost = isinstance(fault, LostReplies) and self._random.random() < fault.share
            closes = await self._relay_answer(connection, head, None if lost else connection.writer)
            if lost:
                self.counts["lost replies"] += 1
                connection.cut()
                return
            if closes:
                return

    def _error(self, fault: Fault) -> Errors | None:
        """Returns the error response for this request, or None."""
        if not isinstance(fault, Errors | SeveralErrors):
            return None
        chance = self._random.random()
        for error in fault.errors if isinstance(fault, SeveralErrors) else (fault,):
            if chance < error.share:
                return error
            chance -= error.share
        return None

    async def _relay_answer(
        self, connection: _Connection, request: _Head, writer: asyncio.StreamWriter | None
    ) -> bool:
        """Forwards the server's response, or drops it. Returns True if the connection ends with the response."""
        while True:
            head = await _head(connection.server_reader)
            if not head:
                raise ConnectionResetError("the server closed the connection")
            await self._hold()
            if writer is not None:
                writer.write(head.raw)
            if not head.is_interim:
                break
        bodiless = request.method == "HEAD" or head.status in (204, 304)
        ended = False
        if not bodiless:
            ended = await _body(connection.server_reader, head, writer, is_request=False)
        if writer is not None:
            await writer.drain()
        return ended or "close" in head.fields.get("connection", "").lower()


class _Connection:
    """A client's connection and, once needed, the connection to the server.

    Connections are compared by identity.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self, target: tuple[str, int]) -> None:
        """Connects to the server, unless it is already connected."""
        if self._server is None:
            self._server = await asyncio.open_connection(*target)

    @property
    def server_reader(self) -> asyncio.StreamReader:
        """Call only after open()."""
        assert self._server is not None
        return self._server[0]

    @property
    def server_writer(self) -> asyncio.StreamWriter:
        """Call only after open()."""
        assert self._server is not None
        return self._server[1]

    def cut(self) -> None:
        """Resets the connection to the client, and to the server if connected."""
        for writer in (self.writer, self._server[1] if self._server else None):
            if writer is None:
                continue
            sock = writer.get_extra_info("socket")
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def close(self) -> None:
        """Closes both sides gracefully."""
        self.writer.close()
        if self._server is not None:
            self._server[1].close()


@dataclass(frozen=True, slots=True)
class _Head:
    """The first line and the header fields of an HTTP message, raw and parsed."""

    raw: bytes
    first_line: str
    fields: dict[str, str]

    @property
    def method(self) -> str:
        return self.first_line.split(" ", 1)[0]

    @property
    def status(self) -> int:
        return int(self.first_line.split(" ")[1])

    @property
    def is_interim(self) -> bool:
        return 100 <= self.status < 200


async def _head(reader: asyncio.StreamReader) -> _Head | None:
    """Reads the head of a message. Returns None at the end of the connection."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    if len(raw) > HEAD_BYTES_MAX:
        raise ValueError("header fields too long")
    first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return _Head(raw, first, fields)


async def _body(
    reader: asyncio.StreamReader, head: _Head, writer: asyncio.StreamWriter | None, *, is_request: bool
) -> bool:
    """Copies a message's body to `writer`, or discards it. Returns True if the end of the body is marked by the
    closing of the connection."""

    def put(data: bytes) -> None:
        if writer is not None:
            writer.write(data)

    if "chunked" in head.fields.get("transfer-encoding", "").lower():
        while True:
            line = await reader.readuntil(b"\r\n")
            put(line)
            size = int(line.split(b";")[0], 16)
            await _copy_exactly(reader, size + 2, put, writer)
            if not size:
                return False
    if "content-length" in head.fields:
        await _copy_exactly(reader, int(head.fields["content-length"]), put, writer)
        return False
    if is_request:
        return False
    while data := await reader.read(COPY_BYTES):
        put(data)
    return True


async def _copy_exactly(
    reader: asyncio.StreamReader, size: int, put: Callable[[bytes], None], writer: asyncio.StreamWriter | None
) -> None:
    while size:
        data = await reader.read(min(size, COPY_BYTES))
        if not data:
            raise ConnectionResetError("the body ended early")
        size -= len(data)
        put(data)
        if writer is not None:
            await writer.drain()


def _answer(fault: Errors) -> bytes:
    """Returns an error response in the format of Google's APIs, which other clients treat as text."""
    detail = {"message": "made by the fault proxy", "domain": "global", "reason": "backendError"}
    body = json.dumps({"error": {"code": fault.status, "message": detail["message"], "errors": [detail]}}).encode()
    lines = [f"HTTP/1.1 {fault.status} Made By Fault Proxy", "Content-Type: application/json"]
    if fault.retry_after_seconds is not None:
        lines.append(f"Retry-After: {fault.retry_after_seconds}")
    lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body
