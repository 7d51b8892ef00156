"""Many HTTP requests at once from one thread: libcurl's multi interface, driven by events of its sockets.

Connections, TLS, proxies (the environment's, for https) and the parsing of answers are libcurl's. What is here
says what is sent, how long it may take, and how an end that is no answer is sorted.
"""

from __future__ import annotations

import selectors
import ssl
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import certifi
import pycurl

from tasks.sinks.outcome import Kind, Trouble
from tasks.units import KiB, MiB

ANSWER_BYTES_MAX = 64 * KiB
CONNECT_SECONDS_MAX = 10.0
# A small body is handed over whole; a larger one is read by libcurl piece by piece, so that it is not copied.
WHOLE_BYTES_MAX = 1 * MiB
WAIT_SECONDS_MAX = 1.0

# A person has to act on these. Any other end without an answer is transient: the network's or the server's.
CONFIGURATION_CODES = frozenset(
    (
        pycurl.E_UNSUPPORTED_PROTOCOL,
        pycurl.E_NOT_BUILT_IN,
        pycurl.E_URL_MALFORMAT,
        pycurl.E_BAD_FUNCTION_ARGUMENT,
        pycurl.E_UNKNOWN_OPTION,
        pycurl.E_PEER_FAILED_VERIFICATION,
        pycurl.E_SSL_CACERT_BADFILE,
        pycurl.E_SSL_CERTPROBLEM,
        pycurl.E_SSL_CIPHER,
        pycurl.E_SSL_ISSUER_ERROR,
        pycurl.E_SSL_ENGINE_NOTFOUND,
        pycurl.E_SSL_ENGINE_SETFAILED,
        pycurl.E_SSL_INVALIDCERTSTATUS,
        pycurl.E_SSL_PINNEDPUBKEYNOTMATCH,
    )
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said. `retry_after_seconds`: None when it did not say."""

    status: int
    body: bytes
    retry_after_seconds: float | None = None


@dataclass(slots=True)
class _Running:
    """One request on its way: the answer so far, and how much of the body was read."""

    key: Hashable
    body: bytes | memoryview
    read_bytes: int = 0
    answer: list[bytes] = field(default_factory=list)
    answer_bytes: int = 0
    endless: bool = False

    def take(self, piece: bytes) -> int | None:
        """A part of the answer. An endless page of a proxy is cut off, which ends the request."""
        self.answer_bytes += len(piece)
        if self.answer_bytes > ANSWER_BYTES_MAX:
            self.endless = True
            return 0
        self.answer.append(piece)
        return None

    def give(self, bytes_max: int) -> bytes:
        """The next part of the body."""
        piece = bytes(self.body[self.read_bytes : self.read_bytes + bytes_max])
        self.read_bytes += len(piece)
        return piece

    def seek(self, offset: int, origin: int) -> None:
        """Back to the beginning: the request is sent again because its kept connection was dead."""
        self.read_bytes = offset


class Transfers:
    """At most `connections` POST requests at once, each on a connection of its own that is kept afterwards.

    Belongs to one thread of one process. Bodies are not changed while they are on their way.
    """

    def __init__(self, connections: int) -> None:
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, connections)
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)
        self._selector = selectors.DefaultSelector()
        self._due_at: float | None = None
        self._connections = connections
        self._idle: list[Any] = []
        self._running: dict[Any, _Running] = {}

    @property
    def room(self) -> bool:
        """Whether another request may start now."""
        return len(self._running) < self._connections

    @property
    def running(self) -> list[Hashable]:
        """The keys of the requests on their way."""
        return [one.key for one in self._running.values()]

    def start(
        self, key: Hashable, url: str, headers: Sequence[str], body: bytes | memoryview, seconds_max: float
    ) -> None:
        """Begins a POST; `wait` tells how it ended, under this key. There must be room."""
        assert self.room
        one, size_bytes = _Running(key, body), len(body)
        handle = self._idle.pop() if self._idle and size_bytes <= WHOLE_BYTES_MAX else _handle()
        handle.setopt(pycurl.URL, url)
        if url.startswith("http:"):
            handle.setopt(pycurl.PROXY, "")
        handle.setopt(pycurl.HTTPHEADER, headers)
        handle.setopt(pycurl.WRITEFUNCTION, one.take)
        handle.setopt(pycurl.CONNECTTIMEOUT_MS, _milliseconds(min(seconds_max, CONNECT_SECONDS_MAX)))
        handle.setopt(pycurl.TIMEOUT_MS, _milliseconds(seconds_max))
        if size_bytes <= WHOLE_BYTES_MAX:
            handle.setopt(pycurl.POSTFIELDS, bytes(body))
        else:
            handle.setopt(pycurl.POST, 1)
            handle.setopt(pycurl.POSTFIELDSIZE_LARGE, size_bytes)
            handle.setopt(pycurl.READFUNCTION, one.give)
            handle.setopt(pycurl.SEEKFUNCTION, one.seek)
        self._running[handle] = one
        self._multi.add_handle(handle)

    def wait(self, seconds_max: float) -> list[tuple[Hashable, Answer | Trouble]]:
        """What ended: as soon as something did, or nothing after `seconds_max` or a second, whichever is less."""
        timeout = min(seconds_max, WAIT_SECONDS_MAX)
        if self._due_at is not None:
            timeout = min(timeout, self._due_at - time.monotonic())
        for selected, mask in self._selector.select(max(0.0, timeout)):
            does = (pycurl.CSELECT_IN if mask & selectors.EVENT_READ else 0) | (
                pycurl.CSELECT_OUT if mask & selectors.EVENT_WRITE else 0
            )
            self._multi.socket_action(selected.fd, does)
        if self._due_at is not None and time.monotonic() >= self._due_at:
            self._due_at = None
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        return list(self._ended())

    def abandon(self) -> None:
        """Breaks off whatever is on its way; these connections are closed."""
        for handle in list(self._running):
            self._release(handle)

    def close(self) -> None:
        """Closes all connections."""
        self.abandon()
        for handle in self._idle:
            handle.close()
        self._idle.clear()
        self._multi.close()
        self._selector.close()

    def _ended(self) -> Iterator[tuple[Hashable, Answer | Trouble]]:
        left = 1
        while left:
            left, succeeded, failed = self._multi.info_read()
            for handle in succeeded:
                yield self._running[handle].key, self._answer(handle)
                self._release(handle)
            for handle, code, text in failed:
                one = self._running[handle]
                yield one.key, self._answer(handle) if one.endless else _trouble(code, text)
                self._release(handle)

    def _answer(self, handle: Any) -> Answer:
        asked_seconds = handle.getinfo(pycurl.RETRY_AFTER)
        return Answer(
            handle.getinfo(pycurl.RESPONSE_CODE),
            b"".join(self._running[handle].answer),
            float(asked_seconds) if asked_seconds > 0 else None,
        )

    def _release(self, handle: Any) -> None:
        self._multi.remove_handle(handle)
        if len(self._running.pop(handle).body) <= WHOLE_BYTES_MAX:
            handle.setopt(pycurl.POSTFIELDS, b"")  # lets go of the body
            self._idle.append(handle)
        else:
            handle.close()

    # What libcurl wants to be told of

    def _on_socket(self, what: int, fd: int, multi: Any, data: Any) -> None:
        known = fd in self._selector.get_map()
        if what == pycurl.POLL_REMOVE:
            if known:
                self._selector.unregister(fd)
            return
        mask = (selectors.EVENT_READ if what & pycurl.POLL_IN else 0) | (
            selectors.EVENT_WRITE if what & pycurl.POLL_OUT else 0
        )
        if known:
            self._selector.modify(fd, mask)
        else:
            self._selector.register(fd, mask)

    def _on_timer(self, milliseconds: int) -> None:
        self._due_at = None if milliseconds < 0 else time.monotonic() + milliseconds / 1000


def _handle() -> Any:
    """What all requests have in common."""
    handle = pycurl.Curl()
    handle.setopt(pycurl.NOSIGNAL, 1)
    handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
    handle.setopt(pycurl.TCP_KEEPALIVE, 1)
    handle.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
    trusted = ssl.get_default_verify_paths()
    handle.setopt(pycurl.CAINFO, trusted.cafile or certifi.where())
    if trusted.capath:
        handle.setopt(pycurl.CAPATH, trusted.capath)
    return handle


def _milliseconds(seconds: float) -> int:
    """At least one: libcurl takes 0 for no limit."""
    return max(1, int(seconds * 1000))


def _trouble(code: int, text: str) -> Trouble:
    """An end without an answer. `code`: https://curl.se/libcurl/c/libcurl-errors.html"""
    kind = Kind.CONFIGURATION if code in CONFIGURATION_CODES else Kind.TRANSIENT
    return Trouble(kind, f"curl {code}: {text}")
