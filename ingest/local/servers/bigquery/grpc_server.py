"""The gRPC service BigQueryWrite: committed streams with offsets, on the same store as the REST calls.

The supported calls are CreateWriteStream (COMMITTED only), AppendRows (protobuf rows, with an offset),
GetWriteStream and FinalizeWriteStream. Other calls, the default stream, and rows in Arrow format are refused.
Unlike BigQuery, this service lets several connections append to one stream, keeps streams indefinitely, and
returns the new columns in the first response after a change of the table's columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.cloud.bigquery_storage_v1 import types
from google.protobuf import any_pb2
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from ingest.local.servers.bigquery.errors import ApiError
from ingest.local.servers.bigquery.rows import Field
from ingest.local.servers.bigquery.store import Store
from ingest.local.servers.bigquery.streams import (
    RowReader,
    Stream,
    StreamError,
    StreamName,
    schema_message,
    table_of,
)
from ingest.local.servers.processes import HOST
from tasks.units import MiB

SERVICE = "/google.cloud.bigquery.storage.v1.BigQueryWrite/"
# The documentation of AppendRowsRequest limits a request to less than 20 MB.
REQUEST_BYTES_MAX = 20_000_000 - 1
MESSAGE_BYTES_MAX = 64 * MiB
# An open AppendRows call holds one thread.
THREADS_MAX = 512
RPC_CODE_BY_HTTP_STATUS = {
    400: code_pb2.INVALID_ARGUMENT,
    403: code_pb2.PERMISSION_DENIED,
    404: code_pb2.NOT_FOUND,
}
_Append, _Appended = types.AppendRowsRequest.pb(), types.AppendRowsResponse.pb()
_Create, _Stream = types.CreateWriteStreamRequest.pb(), types.WriteStream.pb()
_Get = types.GetWriteStreamRequest.pb()
_Finalize, _Finalized = types.FinalizeWriteStreamRequest.pb(), types.FinalizeWriteStreamResponse.pb()
COMMITTED = types.WriteStream.Type.COMMITTED


def serve(store: Store, port: int) -> grpc.Server:
    """Starts the service on the loopback address. Raises RuntimeError if the port is in use."""
    options = [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX), ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(THREADS_MAX, "grpc"), options=options)
    server.add_generic_rpc_handlers((WriteService(store),))
    server.add_insecure_port(f"{HOST}:{port}")
    server.start()
    return server


class WriteService:
    """The generic gRPC handler, which finds the function for each method."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Returns the handler of a method, or None if the method is not supported."""
        match handler_call_details.method.removeprefix(SERVICE):
            case "CreateWriteStream":
                return _unary(self._create, _Create, _Stream)
            case "GetWriteStream":
                return _unary(self._get, _Get, _Stream)
            case "FinalizeWriteStream":
                return _unary(self._finalize, _Finalize, _Finalized)
            case "AppendRows":
                return grpc.stream_stream_rpc_method_handler(
                    self._append_rows, _Append.FromString, _Appended.SerializeToString
                )
        return None

    def _create(self, request: Any) -> Any:
        if request.write_stream.type_ != COMMITTED:
            raise StreamError(code_pb2.UNIMPLEMENTED, "Only streams of type COMMITTED are supported here.")
        stream, fields = self._store.create_stream(table_of(request.parent))
        made = _stream_message(stream)
        made.table_schema.CopyFrom(schema_message(fields))
        return made

    def _get(self, request: Any) -> Any:
        return _stream_message(self._store.stream(StreamName.parse(request.name)))

    def _finalize(self, request: Any) -> Any:
        return _Finalized(row_count=self._store.finalize_stream(StreamName.parse(request.name)))

    def _append_rows(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        """Handles one connection.

        The first request contains the writer schema, and so does each later request that changes it.
        """
        reader: RowReader | None = None
        known: tuple[Field, ...] | None = None
        name = ""
        try:
            for request in requests:
                name = request.write_stream or name
                try:
                    reader = _reader(request, reader)
                    offset = request.offset.value if request.HasField("offset") else None
                    rows = request.proto_rows.rows.serialized_rows
                    at, fields = self._store.append_to_stream(StreamName.parse(name), offset, reader, rows)
                except StreamError as error:
                    if error.ends_call:
                        raise
                    yield _refusal(name, error)
                    continue
                response = _Appended(write_stream=name)
                response.append_result.offset.value = at
                if known not in (None, fields):
                    response.updated_schema.CopyFrom(schema_message(fields))
                known = fields
                yield response
        except (StreamError, ApiError) as error:
            context.abort_with_status(rpc_status.to_status(_status(error)))


def _reader(request: Any, present: RowReader | None) -> RowReader:
    """Returns the reader for the rows of this request. Raises StreamError."""
    if request.ByteSize() > REQUEST_BYTES_MAX:
        text = f"AppendRows request too large: {request.ByteSize()} limit {REQUEST_BYTES_MAX}"
        raise StreamError(code_pb2.INVALID_ARGUMENT, text)
    if request.WhichOneof("rows") != "proto_rows":
        raise StreamError(code_pb2.UNIMPLEMENTED, "Only protobuf rows are supported here.", ends_call=True)
    if request.proto_rows.HasField("writer_schema"):
        return RowReader(request.proto_rows.writer_schema.proto_descriptor)
    if present is None:
        text = "Invalid proto schema: the first request of a connection needs one."
        raise StreamError(code_pb2.INVALID_ARGUMENT, text, ends_call=True)
    return present


def _stream_message(stream: Stream) -> Any:
    """Returns the stream as the service describes it. Appended rows are committed immediately."""
    made = _Stream(name=str(stream.name), type_=COMMITTED)
    made.create_time.FromMicroseconds(int(stream.created_seconds * 1_000_000))
    made.commit_time.CopyFrom(made.create_time)
    return made


def _unary(act: Callable[[Any], Any], request: Any, response: Any) -> grpc.RpcMethodHandler[Any, Any]:
    def answer(message: Any, context: grpc.ServicerContext) -> Any:
        try:
            return act(message)
        except (StreamError, ApiError) as error:
            return context.abort_with_status(rpc_status.to_status(_status(error)))

    return grpc.unary_unary_rpc_method_handler(answer, request.FromString, response.SerializeToString)


def _status(error: StreamError | ApiError) -> status_pb2.Status:
    """Returns the error as a gRPC status, with BigQuery's code in the details."""
    if isinstance(error, ApiError):
        return status_pb2.Status(
            code=RPC_CODE_BY_HTTP_STATUS.get(error.code, code_pb2.INTERNAL), message=str(error)
        )
    status = status_pb2.Status(code=error.code, message=str(error))
    if error.storage_code is not None:
        detail = any_pb2.Any()
        detail.Pack(types.StorageError.pb()(code=error.storage_code, error_message=str(error)))
        status.details.append(detail)
    return status


def _refusal(name: str, error: StreamError) -> Any:
    """Returns the error as an AppendRows response."""
    response = _Appended(write_stream=name)
    response.error.CopyFrom(_status(error))
    for index, message in error.rows:
        response.row_errors.add(index=index, code=types.RowError.RowErrorCode.FIELDS_ERROR, message=message)
    return response
