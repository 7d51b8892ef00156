"""The write streams of one process, and their connections.

A stream is created by the process that appends to it, with the official client, and used for one append at a time.
Every append below `Stream.offset` is known to have been applied. A stream whose last append is not known to have
been applied is never used for other rows: `Streams.take` reserves a stream, and only `release` makes it available
again.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from typing import Any
from urllib.parse import urlsplit

import grpc
from google.api_core.client_options import ClientOptions
from google.api_core.exceptions import DeadlineExceeded, ServiceUnavailable, from_grpc_error
from google.cloud.bigquery_storage_v1.services.big_query_write import BigQueryWriteClient
from google.cloud.bigquery_storage_v1.services.big_query_write.transports import BigQueryWriteGrpcTransport
from google.cloud.bigquery_storage_v1.types import AppendRowsRequest, AppendRowsResponse, WriteStream

from tasks.proto_rows import text_field, varint
from tasks.release import RELEASE
from tasks.settings import Settings

# BigQuery deletes a committed stream after four days without traffic.
IDLE_SECONDS_MAX = 24 * 3600.0
# gRPC must reconnect within a write's timeout; by default, it waits up to two minutes.
CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
)
CLOSED = "the server closed the connection"
TRACE_ID = f"replays-ingest:{RELEASE}"
METHOD = "/google.cloud.bigquery.storage.v1.BigQueryWrite/AppendRows"
_Request, _Response = AppendRowsRequest.pb(), AppendRowsResponse.pb()
# Fields of AppendRowsRequest and of ProtoData.
_PROTO_ROWS, _WRITER_SCHEMA, _ROWS = 4, 1, 2
_BYTES = 2


def write_client(settings: Settings) -> Any:
    """Returns the official client for these settings, with the credentials of the REST client. Opens no
    connection.
    """
    if settings.bigquery_storage_endpoint:
        url = urlsplit(settings.bigquery_storage_endpoint)
        target = f"{url.hostname}:{url.port or (443 if url.scheme == 'https' else 80)}"
        if url.scheme == "https":
            channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(), options=CHANNEL_OPTIONS)
        else:
            channel = grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
        return BigQueryWriteClient(transport=BigQueryWriteGrpcTransport(channel=channel))
    options = None
    if settings.google_credentials_file:
        options = ClientOptions(credentials_file=str(settings.google_credentials_file))
    return BigQueryWriteClient(client_options=options)


def request_of(stream: str, offset: int, rows: bytes, schema: bytes) -> bytes:
    """Returns a serialized AppendRowsRequest: only the small fields are built as a message, so that the rows are
    copied only once.

    `rows`: a serialized ProtoRows message. `schema`: a serialized ProtoSchema message; empty if the connection has
    already sent it.
    """
    head = _Request(write_stream=stream, trace_id=TRACE_ID if schema else "")
    head.offset.value = offset
    start = text_field(_WRITER_SCHEMA, schema) if schema else b""
    start += varint(_ROWS << 3 | _BYTES) + varint(len(rows))
    tag = varint(_PROTO_ROWS << 3 | _BYTES)
    return b"".join((head.SerializeToString(), tag, varint(len(start) + len(rows)), start, rows))


class Connection:
    """One AppendRows call: requests in order, one at a time, each with one response."""

    def __init__(self, client: Any, stream: str) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # The client's own method would wait here for the first response, and would accept only message objects,
        # not serialized requests.
        call = client.transport.grpc_channel.stream_stream(METHOD, response_deserializer=_Response.FromString)
        self._call = call(
            iter(self._requests.get, None), metadata=(("x-goog-request-params", f"write_stream={stream}"),)
        )
        self.schema = b""
        """The schema of the last request."""
        threading.Thread(target=self._read, name="bigquery-appends", daemon=True).start()

    def _read(self) -> None:
        try:
            for reply in self._call:
                self._replies.put(reply)
            self._replies.put(ServiceUnavailable(CLOSED))  # type: ignore[no-untyped-call]
        except grpc.RpcError as error:
            self._replies.put(from_grpc_error(error))  # type: ignore[no-untyped-call]
        except Exception as error:
            self._replies.put(error)

    def send(self, request: bytes, seconds: float) -> Any:
        """Returns the response to this request (the protobuf message). Raises exceptions of google.api_core."""
        self._requests.put(request)
        try:
            reply = self._replies.get(timeout=max(seconds, 0.001))
        except queue.Empty:
            text = f"no response to an append within {seconds:.1f} s"
            raise DeadlineExceeded(text) from None  # type: ignore[no-untyped-call]
        if isinstance(reply, Exception):
            raise reply
        return reply

    def close(self) -> None:
        """Ends the call. A request in flight may or may not be applied."""
        self._requests.put(None)
        self._call.cancel()


class Stream:
    """A write stream that belongs to one table. `offset`: number of rows that this process has appended."""

    def __init__(self, client: Any, table: str, name: str) -> None:
        self.table = table
        self.name = name
        self.offset = 0
        self.used_at = time.monotonic()
        self._client = client
        self._connection: Connection | None = None

    def append(self, schema: bytes, offset: int, rows: bytes, seconds: float) -> Any:
        """Sends one AppendRows request with the ProtoSchema and ProtoRows messages. After an exception, the next
        call opens a new connection. Raises exceptions of google.api_core.
        """
        if self._connection is None:
            self._connection = Connection(self._client, self.name)
        is_known = self._connection.schema == schema
        request = request_of(self.name, offset, rows, b"" if is_known else schema)
        self._connection.schema = schema
        self.used_at = time.monotonic()
        try:
            return self._connection.send(request, seconds)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the connection. The stream remains."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class Streams:
    """The free streams of one process, by table. Thread-safe: a stream has one user at a time."""

    def __init__(self, client: Any, tables: str) -> None:
        """`tables`: the resource name of the tables' parent, with a trailing slash."""
        self._client = client
        self._tables = tables
        self._free: dict[str, deque[Stream]] = {}

    def take(self, table: str, seconds: float) -> Stream:
        """Returns a free stream, or creates a new stream. Raises exceptions of google.api_core."""
        free = self._free.setdefault(table, deque())
        while True:
            try:
                stream = free.pop()
            except IndexError:
                break
            if time.monotonic() - stream.used_at < IDLE_SECONDS_MAX:
                return stream
            stream.close()
        made = self._client.create_write_stream(
            parent=self._tables + table,
            write_stream=WriteStream(type_=WriteStream.Type.COMMITTED),
            retry=None,
            timeout=seconds,
        )
        return Stream(self._client, table, made.name)

    def release(self, stream: Stream) -> None:
        """Makes the stream available for other rows. Every append to the stream must be known to have been
        applied.
        """
        self._free.setdefault(stream.table, deque()).append(stream)

    def open_existing(self, table: str, name: str) -> Stream:
        """Returns a stream created by any process, for sending recorded rows again."""
        return Stream(self._client, table, name)

    def finalize(self, name: str, seconds: float) -> int:
        """Finalizes the stream for all processes, and returns its number of rows. Raises exceptions of
        google.api_core."""
        return int(self._client.finalize_write_stream(name=name, retry=None, timeout=seconds).row_count)

    def close(self) -> None:
        """Closes all connections."""
        for free in self._free.values():
            while free:
                free.pop().close()
