"""What all operations share: a server with a fresh dataset, the calls to its API, and checks of its responses."""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import grpc
import requests
from google.api_core.client_options import ClientOptions
from google.api_core.exceptions import GoogleAPICallError
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1.services.big_query_write import BigQueryWriteClient
from google.cloud.bigquery_storage_v1.services.big_query_write.transports import BigQueryWriteGrpcTransport
from google.cloud.bigquery_storage_v1.types import AppendRowsRequest, ProtoSchema, StorageError, WriteStream
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from ingest.core.parse.rows import moment
from tasks.sinks.bigquery.append_answers import details_of, storage_code
from tasks.sinks.bigquery.row_encoding import RowEncoder
from tasks.sinks.bigquery.streams import Connection
from tasks.sinks.bigquery.table import columns_of

SECONDS = 60.0
PROJECT, TABLE = "contract", "replay_events"
TEXT_CHARACTERS_MAX = 160
Code = StorageError.StorageErrorCode


class Mismatch(Exception):
    """The server differs from the documentation. The message describes what the server does instead."""


def expect(condition: bool, text: str) -> None:
    """Raises Mismatch with the text unless the condition holds."""
    if not condition:
        raise Mismatch(text)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response to a REST call. `asked`: the method and the last part of the path."""

    asked: str
    status: int
    body: dict[str, Any]

    @property
    def reasons(self) -> list[str]:
        """The reasons in an error response."""
        error = self.body.get("error")
        entries = error.get("errors", ()) if isinstance(error, dict) else ()
        return [str(entry.get("reason", "")) for entry in entries]

    def expect(self, status: int, reason: str = "") -> Answer:
        """Raises Mismatch unless the response has this status and, if a reason is given, this reason."""
        wanted = f"{status} {reason}".rstrip()
        expect(self.status == status, f"{self.asked}: {self}, not {wanted}")
        expect(not reason or reason in self.reasons, f"{self.asked}: {self}, not {wanted}")
        return self

    def __str__(self) -> str:
        return f"status {self.status} {', '.join(self.reasons)}".rstrip()

    def expect_row_errors(self, wanted: Mapping[int, list[str]]) -> Answer:
        """Raises Mismatch unless exactly the given rows are refused, for the given reasons."""
        self.expect(200)
        expect(self.row_errors == wanted, f"{_refusals(self.row_errors)}; expected: {_refusals(wanted)}")
        return self

    @property
    def row_errors(self) -> dict[int, list[str]]:
        """The reasons why rows were refused, by row index, from an insertAll response."""
        entries = self.body.get("insertErrors") or ()
        return {entry.get("index", 0): [error.get("reason") for error in entry["errors"]] for entry in entries}


def _refusals(errors: Mapping[int, Sequence[str]]) -> str:
    """Describes the refused rows and their reasons."""
    return ", ".join(f"row {index} is {'/'.join(map(str, reasons))}" for index, reasons in errors.items()) or (
        "no row is refused"
    )


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation. `pages`: titles of the pages in Google's documentation with which the result is compared."""

    name: str
    what: str
    pages: tuple[str, ...]
    run: Callable[[Target], None]


def operation_of(run: Callable[[Target], None]) -> Operation:
    """Returns the operation that a function implements. The part of the docstring after `Page:` names the pages of
    the documentation, separated by semicolons; the part before it is the description.
    """
    what, _, rest = " ".join((run.__doc__ or "").split()).partition("Page: ")
    return Operation(run.__name__, what.strip(), tuple(page.strip().rstrip(".") for page in rest.split(";")), run)


@dataclass
class Target:
    """A server, and the dataset that one operation uses on it. The target must be closed after the operation."""

    rest: str
    grpc: str
    dataset: str = field(default_factory=lambda: f"contract_{uuid.uuid4().hex[:10]}")
    encoder: RowEncoder = field(default_factory=lambda: RowEncoder(TABLE))

    def __post_init__(self) -> None:
        self._closing = contextlib.ExitStack()
        self._session = self._closing.enter_context(requests.Session())

    def close(self) -> None:
        """Closes all connections."""
        self._closing.close()

    # ---- REST

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Answer:
        """Sends one request; `path` is relative to the project."""
        url = f"{self.rest}/bigquery/v2/projects/{PROJECT}{path}"
        reply = self._session.request(method, url, params=query, json=body, headers=headers, timeout=SECONDS)
        try:
            found = reply.json() if reply.content else {}
        except ValueError:
            found = {}
        last = path.rpartition("/")[2]
        asked = (
            f"{method} of the table"
            if last == TABLE
            else f"{method} {last.replace(self.dataset, 'of the dataset')}"
        )
        return Answer(asked, reply.status_code, found if isinstance(found, dict) else {})

    def path(self, table: str = TABLE) -> str:
        """Returns the path of a table."""
        return f"/datasets/{self.dataset}/tables/{table}"

    def create_dataset(self) -> None:
        """Creates the dataset that only this operation uses."""
        reference = {"projectId": PROJECT, "datasetId": self.dataset}
        self.call("POST", "/datasets", {"datasetReference": reference}).expect(200)

    def resource(self, fields: Sequence[Mapping[str, Any]], parts: Mapping[str, Any] = {}) -> dict[str, Any]:
        """Returns the resource of a new table."""
        reference = {"projectId": PROJECT, "datasetId": self.dataset, "tableId": TABLE}
        return {"tableReference": reference, "schema": {"fields": [dict(entry) for entry in fields]}, **parts}

    def create_table(self, fields: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
        """Creates the dataset and the table of facts, partitioned by day as in the migrations."""
        self.create_dataset()
        parts = {"timePartitioning": {"type": "DAY", "field": "timestamp"}}
        resource = self.resource(list(columns_of(TABLE).values()) if fields is None else fields, parts)
        return self.call("POST", f"/datasets/{self.dataset}/tables", resource).expect(200).body

    def insert(self, *rows: Mapping[str, Any], ids: Sequence[str] = (), **options: Any) -> Answer:
        """Sends one insertAll request, with the options of the sink unless others are given."""
        entries: list[dict[str, Any]] = [{"json": entry} for entry in rows]
        for entry, insert_id in zip(entries, ids, strict=False):
            entry["insertId"] = insert_id
        body = {"skipInvalidRows": True, "ignoreUnknownValues": False, "rows": entries, **options}
        return self.call("POST", f"{self.path()}/insertAll", body)

    def stored(self, *rows: Mapping[str, Any]) -> None:
        """Inserts rows that must be accepted."""
        self.insert(*rows).expect_row_errors({})

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Runs a statement with the official client, as readers do; `FACTS` in the statement stands for the table.
        Raises Mismatch.
        """
        return [tuple(row.values()) for row in self.job(sql, parameters).result(retry=None, timeout=SECONDS)]

    def job(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """The statement's job."""
        options = ClientOptions(api_endpoint=self.rest)
        credentials = AnonymousCredentials()  # type: ignore[no-untyped-call]
        client: Any = bigquery.Client(project=PROJECT, credentials=credentials, client_options=options)
        self._closing.callback(client.close)
        config = bigquery.QueryJobConfig(query_parameters=list(parameters))
        text = sql.replace("FACTS", f"`{PROJECT}.{self.dataset}.{TABLE}`")
        return client.query(text, job_config=config, retry=None, job_retry=None, timeout=SECONDS)

    def segments(self, table: str = TABLE) -> list[int]:
        """Returns the values of `segment_id` in the table, sorted."""
        rows = self.query(f"SELECT segment_id FROM `{PROJECT}.{self.dataset}.{table}`")
        return sorted(int(number) for (number,) in rows)

    # ---- Storage Write API

    @property
    def parent(self) -> str:
        """The resource name of the table."""
        return f"projects/{PROJECT}/datasets/{self.dataset}/tables/{TABLE}"

    @property
    def descriptor(self) -> Any:
        """The protobuf descriptor of the sink's rows."""
        return ProtoSchema.pb().FromString(self.encoder.schema).proto_descriptor

    def writer(self) -> Any:
        """Returns a client of the Storage Write API."""
        channel = grpc.insecure_channel(urlsplit(self.grpc).netloc)
        self._closing.callback(channel.close)
        return BigQueryWriteClient(transport=BigQueryWriteGrpcTransport(channel=channel))

    def create_stream(self, parent: str = "") -> Any:
        """Creates a stream of type COMMITTED."""
        wanted = WriteStream(type_=WriteStream.Type.COMMITTED)
        return self.writer().create_write_stream(
            parent=parent or self.parent, write_stream=wanted, retry=None, timeout=SECONDS
        )

    def connect(self, stream: str) -> Connection:
        """Opens a connection to a stream, as the sink does."""
        connection = Connection(self.writer(), stream)
        self._closing.callback(connection.close)
        return connection

    def append_request(
        self, stream: str, offset: int | None, rows: Sequence[bytes], descriptor: Any = None
    ) -> Any:
        """Returns one request; `descriptor` is the writer schema, which the first request of a connection
        needs.
        """
        request = AppendRowsRequest.pb()(write_stream=stream)
        if offset is not None:
            request.offset.value = offset
        request.proto_rows.rows.serialized_rows.extend(rows)
        if descriptor is not None:
            request.proto_rows.writer_schema.proto_descriptor.CopyFrom(descriptor)
        return request

    def append(self, connection: Connection, stream: str, offset: int | None, *numbers: int) -> AppendResult:
        """Appends valid rows. Returns the response; an error of the call itself is returned in the same form."""
        descriptor = None if connection.schema else self.descriptor
        connection.schema = self.encoder.schema
        return self.send(connection, self.append_request(stream, offset, self.encoded(*numbers), descriptor))

    def send(self, connection: Connection, request: Any) -> AppendResult:
        """Sends one request."""
        try:
            reply = connection.send(request.SerializeToString(), SECONDS)
        except GoogleAPICallError as error:
            return AppendResult.failed(error)
        return AppendResult.of(reply)

    def message(self, number: int) -> Any:
        """Returns a valid row, which may be changed before it is serialized."""
        file = descriptor_pb2.FileDescriptorProto(name="contract.proto", package="contract", syntax="proto2")
        file.message_type.append(self.descriptor)
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file)
        made = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"contract.{TABLE}"))
        return made.FromString(self.encoded(number)[0])

    def encoded(self, *numbers: int) -> list[bytes]:
        """Returns valid rows as serialized messages."""
        rows = [self.encoder.encode(json.dumps(row(number)).encode()) for number in numbers]
        return [encoded for encoded in rows if isinstance(encoded, bytes)]


@dataclass(frozen=True, slots=True)
class AppendResult:
    """The result of one append: its offset, or an error, which is an error response or a closed connection."""

    offset: int | None = None
    status: str = ""
    code: Any = None
    rows: tuple[int, ...] = ()
    has_new_schema: bool = False
    ended: bool = False

    @classmethod
    def of(cls, reply: Any) -> AppendResult:
        """Returns the result for a response."""
        has_new_schema = reply.HasField("updated_schema")
        if reply.WhichOneof("response") == "append_result":
            result = reply.append_result
            return cls(result.offset.value if result.HasField("offset") else None, has_new_schema=has_new_schema)
        error = reply.error
        rows = tuple(entry.index for entry in reply.row_errors)
        return cls(None, status_name(error.code), storage_code(error.details), rows, has_new_schema)

    @classmethod
    def failed(cls, error: GoogleAPICallError) -> AppendResult:
        """Returns the result for an error that ended the connection."""
        status = error.grpc_status_code.name if error.grpc_status_code is not None else type(error).__name__
        return cls(None, status, storage_code(details_of(error)), ended=True)

    def expect_stored(self, offset: int) -> AppendResult:
        """Raises Mismatch unless the rows are stored at the offset."""
        expect(not self.status, f"a valid append is refused with {self.status}")
        expect(self.offset == offset, f"the result names offset {self.offset}, not {offset}")
        return self

    def expect_error(self, status: str) -> AppendResult:
        """Raises Mismatch unless the append is refused with this gRPC status."""
        expect(bool(self.status), f"it is accepted, not refused with {status}")
        expect(self.status == status, f"{self.status}, not {status}")
        return self


def status_name(number: int) -> str:
    """Returns the name of a gRPC status."""
    return next((status.name for status in grpc.StatusCode if status.value[0] == number), str(number))


def refused(call: Callable[[], Any]) -> AppendResult:
    """Returns the error of a unary call. Raises Mismatch if the call succeeds."""
    try:
        call()
    except GoogleAPICallError as error:
        return AppendResult.failed(error)
    raise Mismatch("the call succeeds")


NOW_SECONDS = int(time.time())


def written(seconds: float) -> str:
    """Returns a time as the sink writes it."""
    return moment(seconds)


def row(number: int, **given: Any) -> dict[str, Any]:
    """Returns a valid row; `given` changes or adds columns."""
    return {
        "row_id": f"row-{number}",
        "event_type": "ui.click",
        "timestamp": written(NOW_SECONDS + 0.125),
        "org_id": 1,
        "project_id": 2,
        "replay_id": f"{number:032x}",
        "segment_id": number,
        "attributes": json.dumps({"url": 'http://a/"ä'}, ensure_ascii=False),
    } | given


def run_operation(target: Target, chosen: Operation) -> str:
    """Runs one operation. Returns what differs from the documentation, or "" if nothing differs."""
    try:
        chosen.run(target)
    except Mismatch as error:
        return plain(str(error), target)
    except Exception as error:
        return plain(f"{type(error).__name__}: {error}", target)
    finally:
        target.close()
    return ""


def plain(text: str, target: Target) -> str:
    """Returns the text on one line, without addresses or generated names."""
    text = " ".join(text.split()).replace(target.dataset, "DATASET").replace(target.rest, "SERVER")
    text = re.sub(r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}", "ID", text)
    text = re.sub(r"(/[\w.+-]+){3,}", "PATH", text)
    text = re.sub(r"port=\d+", "port=PORT", text)
    return text if len(text) <= TEXT_CHARACTERS_MAX else f"{text[: TEXT_CHARACTERS_MAX - 1]}…"
