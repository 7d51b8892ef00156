"""Sends many concurrent HTTP requests from one thread, with libcurl's multi interface driven by socket events.

libcurl handles connections, TLS, proxies (from the environment) and parsing. This module defines the requests, the
total time limit, the part of a response that is read, and the classification of failures without a response.
Redirects are not followed.
"""

from __future__ import annotations

import selectors
import ssl
import threading
import time
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import certifi
import pycurl

from tasks.sinks.http.answers import Answer, blame_of_status
from tasks.sinks.outcome import RETRY_AFTER_SECONDS_MAX, Blame, Failure
from tasks.units import KiB, MiB

ANSWER_BYTES_MAX = 64 * KiB
CONNECT_SECONDS_MAX = 10.0
# A small body is passed as a whole; a larger one is read by libcurl in chunks, so that it is not copied.
WHOLE_BODY_BYTES_MAX = 1 * MiB
WAIT_SECONDS_MAX = 1.0

# These require an operator. Any other failure without a response is attributed to the network or the server, and
# retried.
BLAME_BY_CODE: dict[int, Blame] = {
    pycurl.E_UNSUPPORTED_PROTOCOL: Blame.REQUEST,
    pycurl.E_NOT_BUILT_IN: Blame.REQUEST,
    pycurl.E_URL_MALFORMAT: Blame.REQUEST,
    pycurl.E_BAD_FUNCTION_ARGUMENT: Blame.REQUEST,
    pycurl.E_UNKNOWN_OPTION: Blame.REQUEST,
    pycurl.E_PEER_FAILED_VERIFICATION: Blame.REQUEST,
    pycurl.E_SSL_CACERT_BADFILE: Blame.REQUEST,
    pycurl.E_SSL_CIPHER: Blame.REQUEST,
    pycurl.E_SSL_ISSUER_ERROR: Blame.REQUEST,
    pycurl.E_SSL_ENGINE_NOTFOUND: Blame.REQUEST,
    pycurl.E_SSL_ENGINE_SETFAILED: Blame.REQUEST,
    pycurl.E_SSL_INVALIDCERTSTATUS: Blame.REQUEST,
    pycurl.E_SSL_PINNEDPUBKEYNOTMATCH: Blame.REQUEST,
    pycurl.E_SSL_CERTPROBLEM: Blame.CREDENTIALS,
}


TRUNCATED_RESPONSE = Failure(Blame.NETWORK, "the response was cut off within its headers")


class Method(Enum):
    """The request method."""

    POST = "POST"
    GET = "GET"
    DELETE = "DELETE"


class Proxies(Enum):
    """Selects the requests that use the proxies configured in environment variables."""

    HTTPS = "https only: an emulator on plain http is reached directly"
    ALL = "http and https"


@dataclass(slots=True)
class _RunningRequest:
    """One request in flight: the response so far, and the number of bytes of the body that were read."""

    key: Hashable
    body: bytes | memoryview
    wanted_headers: Collection[str]
    reusable: bool
    read_bytes: int = 0
    answer: list[bytes] = field(default_factory=list)
    answer_bytes: int = 0
    endless: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    head_ended: bool = False

    def take(self, piece: bytes) -> int | None:
        """Receives a part of the response. An endless proxy page is truncated, which ends the request."""
        self.answer_bytes += len(piece)
        if self.answer_bytes > ANSWER_BYTES_MAX:
            self.endless = True
            return 0
        self.answer.append(piece)
        return None

    def take_header(self, line: bytes) -> None:
        """Receives one header line. The headers of a second response (after `100 Continue`) replace those of the
        first."""
        if line.startswith(b"HTTP/"):
            self.headers.clear()
            self.head_ended = False
            return
        if not line.strip():
            self.head_ended = True
            return
        name, _, value = line.decode("latin-1").partition(":")
        if name.strip().lower() in self.wanted_headers:
            self.headers[name.strip().lower()] = value.strip()

    def read_body(self, bytes_max: int) -> bytes:
        """Returns the next part of the request body."""
        piece = bytes(self.body[self.read_bytes : self.read_bytes + bytes_max])
        self.read_bytes += len(piece)
        return piece

    def seek(self, offset: int, origin: int) -> None:
        """Rewinds the request body, because libcurl sends a request again if its reused connection was dead."""
        self.read_bytes = offset


class Transfers:
    """Runs up to `connections` concurrent requests, each on its own connection, which is reused afterwards.

    Belongs to one thread of one process. Bodies must not change while they are in flight.
    """

    def __init__(self, connections: int, *, proxies: Proxies = Proxies.HTTPS, ca_file: Path | None = None) -> None:
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, connections)
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)
        self._selector = selectors.DefaultSelector()
        self._due_at: float | None = None
        self._connections = connections
        self._proxies = proxies
        self._ca_file = ca_file
        self._idle: list[Any] = []
        self._running: dict[Any, _RunningRequest] = {}

    @property
    def room(self) -> bool:
        """Whether another request may start now."""
        return len(self._running) < self._connections

    @property
    def running(self) -> list[Hashable]:
        """The keys of the requests in flight."""
        return [request.key for request in self._running.values()]

    def send(
        self,
        url: str,
        headers: Sequence[str],
        body: bytes | memoryview,
        seconds_max: float,
        *,
        method: Method = Method.POST,
        wanted_headers: Collection[str] = (),
    ) -> Answer | Failure:
        """Sends one request and waits for its result, with no other request in flight."""
        assert not self._running
        try:
            self.start(0, url, headers, body, seconds_max, method=method, wanted_headers=wanted_headers)
            while True:
                for _, end in self.wait(seconds_max):
                    return end
        finally:
            self.abandon()

    def start(
        self,
        key: Hashable,
        url: str,
        headers: Sequence[str],
        body: bytes | memoryview,
        seconds_max: float,
        *,
        method: Method = Method.POST,
        wanted_headers: Collection[str] = (),
    ) -> None:
        """Starts a request; `wait` returns its result with this key. `room` must be true.

        `wanted_headers`: lower-case names of the headers to keep from the response.
        """
        assert self.room
        small = len(body) <= WHOLE_BODY_BYTES_MAX
        request = _RunningRequest(key, body, wanted_headers, reusable=small and method is Method.POST)
        handle = self._idle.pop() if self._idle and request.reusable else _handle(self._ca_file)
        handle.setopt(pycurl.URL, url)
        if self._proxies is Proxies.HTTPS and url.startswith("http:"):
            handle.setopt(pycurl.PROXY, "")
        handle.setopt(pycurl.HTTPHEADER, headers)
        handle.setopt(pycurl.WRITEFUNCTION, request.take)
        if wanted_headers:
            handle.setopt(pycurl.HEADERFUNCTION, request.take_header)
        handle.setopt(pycurl.CONNECTTIMEOUT_MS, _milliseconds(min(seconds_max, CONNECT_SECONDS_MAX)))
        handle.setopt(pycurl.TIMEOUT_MS, _milliseconds(seconds_max))
        if method is not Method.POST:
            handle.setopt(pycurl.HTTPGET, 1)
            handle.setopt(pycurl.CUSTOMREQUEST, method.value)
        elif small:
            handle.setopt(pycurl.POSTFIELDS, bytes(body))
        else:
            handle.setopt(pycurl.POST, 1)
            handle.setopt(pycurl.POSTFIELDSIZE_LARGE, len(body))
            handle.setopt(pycurl.READFUNCTION, request.read_body)
            handle.setopt(pycurl.SEEKFUNCTION, request.seek)
        self._running[handle] = request
        self._multi.add_handle(handle)

    def wait(self, seconds_max: float) -> list[tuple[Hashable, Answer | Failure]]:
        """Waits for network activity or a timer of libcurl, for at most `seconds_max` or one second, whichever is
        shorter. Returns the key and the result of each request that has completed; the list may be empty.
        """
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
        """Cancels all requests in flight and closes their connections."""
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

    def _ended(self) -> Iterator[tuple[Hashable, Answer | Failure]]:
        left = 1
        while left:
            left, succeeded, failed = self._multi.info_read()
            for handle in succeeded:
                request = self._running[handle]
                # libcurl treats a response that ends within its headers as complete, without a body.
                cut_off = request.wanted_headers and not request.head_ended
                yield request.key, TRUNCATED_RESPONSE if cut_off else self._answer(handle)
                self._release(handle)
            for handle, code, text in failed:
                request = self._running[handle]
                yield request.key, self._answer(handle) if request.endless else _failure(handle, code, text)
                self._release(handle)

    def _answer(self, handle: Any) -> Answer:
        request = self._running[handle]
        requested_seconds = handle.getinfo(pycurl.RETRY_AFTER)
        return Answer(
            handle.getinfo(pycurl.RESPONSE_CODE),
            b"".join(request.answer),
            min(float(requested_seconds), RETRY_AFTER_SECONDS_MAX) if requested_seconds > 0 else None,
            handle.getinfo(pycurl.CONTENT_TYPE) or "",
            not request.endless,
            request.headers,
        )

    def _release(self, handle: Any) -> None:
        self._multi.remove_handle(handle)
        request = self._running.pop(handle)
        request.body = b""  # the handle still refers to `request` through its callbacks
        if request.reusable:
            handle.setopt(pycurl.POSTFIELDS, b"")
            self._idle.append(handle)
        else:
            handle.close()

    # Callbacks of libcurl

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


class Connections:
    """One `Transfers` per thread of a process."""

    def __init__(self, connections: int, *, proxies: Proxies = Proxies.HTTPS, ca_file: Path | None = None) -> None:
        self._connections = connections
        self._proxies = proxies
        self._ca_file = ca_file
        self._local = threading.local()
        self._all: list[Transfers] = []

    @property
    def for_this_thread(self) -> Transfers:
        """The transfers of the calling thread."""
        found: Transfers | None = getattr(self._local, "transfers", None)
        if found is None:
            found = Transfers(self._connections, proxies=self._proxies, ca_file=self._ca_file)
            self._local.transfers = found
            self._all.append(found)
        return found

    def close(self) -> None:
        """Closes the connections of all threads. No request may be in flight in any thread."""
        for transfers in self._all:
            transfers.close()
        self._all.clear()


def _handle(ca_file: Path | None) -> Any:
    """Returns the options common to all requests."""
    handle = pycurl.Curl()
    handle.setopt(pycurl.NOSIGNAL, 1)
    handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
    handle.setopt(pycurl.TCP_KEEPALIVE, 1)
    handle.setopt(pycurl.FOLLOWLOCATION, 0)
    handle.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
    if ca_file is not None:
        handle.setopt(pycurl.CAINFO, str(ca_file))
        return handle
    trusted = ssl.get_default_verify_paths()
    handle.setopt(pycurl.CAINFO, trusted.cafile or certifi.where())
    if trusted.capath:
        handle.setopt(pycurl.CAPATH, trusted.capath)
    return handle


def _milliseconds(seconds: float) -> int:
    """Returns whole milliseconds, at least one, because libcurl treats 0 as no limit."""
    return max(1, int(seconds * 1000))


def _failure(handle: Any, code: int, text: str) -> Failure:
    """Returns a `Failure` for a request that failed without a response. `code`: libcurl's error code,
    https://curl.se/libcurl/c/libcurl-errors.html
    """
    tunnel_status = handle.getinfo(pycurl.HTTP_CONNECTCODE)
    if tunnel_status and not 200 <= tunnel_status <= 299:
        return Failure(blame_of_status(tunnel_status), f"the proxy answers {tunnel_status} to CONNECT: {text}")
    # libcurl uses the same code for an unsupported URL and for a response that is not HTTP.
    blame = Blame.NETWORK if "HTTP/0.9" in text else BLAME_BY_CODE.get(code, Blame.NETWORK)
    return Failure(blame, f"curl {code}: {text}")
