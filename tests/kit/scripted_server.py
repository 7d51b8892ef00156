"""An HTTP server with scripted responses, including wrong and truncated responses, hangs, and protocol errors.

    with answering(lambda request: Answer(503)) as (url, requests): ...      # for every request
    with answering(in_turn([half(whole), whole])) as (url, requests): ...  # by the number of the request

`tests.kit.sink_answers` contains each sink's valid response, and 2xx responses that do not prove that the data was
written.
"""

from __future__ import annotations

import itertools
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class ReceivedRequest:
    """A request as it was received."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """One scripted response.

    `delay`: the event for which the server waits before it responds, at most 30 s. `cut`: the connection is closed
    without a response. `sent_bytes_max`: the connection is closed after this number of body bytes, although the
    Content-Length header states the full length. `raw`: these bytes are sent instead of an HTTP response, and the
    connection is closed.
    """

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    delay: threading.Event | None = None
    cut: bool = False
    sent_bytes_max: int | None = None
    raw: bytes | None = None


Script = Callable[[ReceivedRequest], Answer]


def answers_in_order(answers: Sequence[Answer | Script]) -> Script:
    """Returns a script that gives the n-th answer to the n-th request, and the last answer to all later
    requests.
    """
    numbers = itertools.count()

    def answer(request: ReceivedRequest) -> Answer:
        reply = answers[min(next(numbers), len(answers) - 1)]
        return reply(request) if callable(reply) else reply

    return answer


def truncated_answer(whole: Answer) -> Answer:
    """Returns the response truncated in the middle of its body."""
    return replace(whole, sent_bytes_max=len(whole.body) // 2)


def relay_to(url: str) -> Script:
    """Returns a script that forwards every request to a server and returns the server's response."""

    def answer(request: ReceivedRequest) -> Answer:
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        forwarded = urllib.request.Request(
            url + request.path, request.body or None, headers, method=request.method
        )
        try:
            with urllib.request.urlopen(forwarded, timeout=30) as got:
                return Answer(got.status, got.read(), dict(got.headers.items()))
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read(), dict(error.headers.items()))

    return answer


@contextmanager
def answering(answer: Script, *, body_bytes_max: int | None = None) -> Iterator[tuple[str, list[ReceivedRequest]]]:
    """Yields the server's URL and the list of received requests.

    If a request is larger than `body_bytes_max`, the server acts like a proxy: it responds with 413 without
    reading the body, and closes the connection.
    """
    requests: list[ReceivedRequest] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_POST(self) -> None:
            size_bytes = int(self.headers.get("Content-Length") or 0)
            if body_bytes_max is not None and size_bytes > body_bytes_max:
                requests.append(ReceivedRequest(self.command, self.path, dict(self.headers.items()), b""))
                self.close_connection = True
                page = b"<html><head><title>413 Request Entity Too Large</title></head></html>"
                self._send(Answer(413, page, {"Content-Type": "text/html", "Connection": "close"}))
                return
            request = ReceivedRequest(
                self.command, self.path, dict(self.headers.items()), self.rfile.read(size_bytes)
            )
            requests.append(request)
            self._send(answer(request))

        do_GET = do_DELETE = do_CONNECT = do_POST

        def _send(self, reply: Answer) -> None:
            if reply.delay is not None:
                reply.delay.wait(30)
            if reply.cut or reply.raw is not None:
                self.close_connection = True
                self.wfile.write(reply.raw or b"")
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                if name.lower() not in ("content-length", "date", "server"):
                    self.send_header(name, value)
            if reply.status not in (204, 304):
                self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            if reply.status in (204, 304):
                return
            self.wfile.write(reply.body[: reply.sent_bytes_max])
            if reply.sent_bytes_max is not None:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Does not log that a client disconnected."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
