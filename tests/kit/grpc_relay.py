"""A gRPC server that forwards calls to another server, and drops requests and responses on demand.

The relay forwards calls as bytes. `Relay.on` is called before each request is forwarded (`LossPoint.REQUEST`) and
before each response is returned (`LossPoint.RESPONSE`). `on` is called with the method, the `LossPoint`, and the
number of the request, counted from 1 for each method. If `on` returns True, the call ends with UNAVAILABLE at that
point.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from enum import Enum, auto
from typing import Any

import grpc

from ingest.local.servers.processes import HOST, free_port

MESSAGE_BYTES_MAX = 32 * 1024 * 1024
CALL_SECONDS_MAX = 30
STREAMING = "AppendRows"


class LossPoint(Enum):
    """The moments at which the relay can drop a request or its response."""

    REQUEST = auto()
    RESPONSE = auto()


Lose = Callable[[str, LossPoint, int], bool]


class Relay:
    """A relay that drops the requests and responses selected by `on`. `asked` counts the requests by method."""

    def __init__(self, target: str) -> None:
        self.on: Lose = lambda method, moment, number: False
        self.asked: Counter[str] = Counter()
        self.port = free_port()
        limits = [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX)]
        self._channel = grpc.insecure_channel(target.removeprefix("http://"), options=limits)
        self._server = grpc.server(ThreadPoolExecutor(32), options=limits)
        self._server.add_generic_rpc_handlers((self,))
        self._server.add_insecure_port(f"{HOST}:{self.port}")
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        """Value for `REPLAYS_BIGQUERY_STORAGE_ENDPOINT`."""
        return f"http://{HOST}:{self.port}"

    def start(self) -> None:
        """Serves until `stop`."""
        self._server.start()

    def stop(self) -> None:
        """Ends all calls."""
        self._server.stop(None).wait(CALL_SECONDS_MAX)
        self._channel.close()

    def service(self, details: Any) -> Any:
        """Returns the handler for the called method, whichever method that is. gRPC calls this for each call."""
        path = details.method
        method = path.rpartition("/")[2]
        if method == STREAMING:
            return grpc.stream_stream_rpc_method_handler(
                lambda requests, context: self._stream(path, method, requests, context)
            )
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._unary(path, method, request, context)
        )

    def _number(self, method: str) -> int:
        with self._lock:
            self.asked[method] += 1
            return self.asked[method]

    def _lose(self, method: str, moment: LossPoint, number: int, context: Any) -> None:
        if self.on(method, moment, number):
            context.abort(grpc.StatusCode.UNAVAILABLE, f"the {moment.name.lower()} is lost")

    def _unary(self, path: str, method: str, request: bytes, context: Any) -> bytes:
        number = self._number(method)
        self._lose(method, LossPoint.REQUEST, number, context)
        try:
            response: bytes = self._channel.unary_unary(path)(request, timeout=CALL_SECONDS_MAX)
        except grpc.RpcError as error:
            _forward(error, context)
        self._lose(method, LossPoint.RESPONSE, number, context)
        return response

    def _stream(self, path: str, method: str, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        passed: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        answers = self._channel.stream_stream(path)(iter(passed.get, None), timeout=CALL_SECONDS_MAX)
        try:
            for request in requests:
                number = self._number(method)
                self._lose(method, LossPoint.REQUEST, number, context)
                passed.put(request)
                try:
                    response = next(answers)
                except grpc.RpcError as error:
                    _forward(error, context)
                self._lose(method, LossPoint.RESPONSE, number, context)
                yield response
        finally:
            passed.put(None)
            answers.cancel()


def _forward(error: Any, context: Any) -> None:
    """Ends the call with the error that the other server returned."""
    context.set_trailing_metadata(tuple(error.trailing_metadata() or ()))
    context.abort(error.code(), error.details())


@contextmanager
def relay_to(target: str) -> Iterator[Relay]:
    """Runs a relay to the given address."""
    made = Relay(target)
    made.start()
    try:
        yield made
    finally:
        made.stop()
