"""ClickHouse: the real engine (the chDB library) behind the part of the HTTP interface that clients use.

chDB is ClickHouse as a library, with real MergeTree tables, SQL and error codes. Only one process may open a data
directory, so `python -m ingest.local.servers.clickhouse` opens it and serves HTTP to other processes. An
unmodified clickhouse-connect works with this server. Each request uses its own connection to the engine (0.3 ms),
so that settings and databases do not leak into the next request.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hmac
import importlib
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import uuid
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

from ingest.local.servers.base import HttpServer, NonBrowserHandler, Server, answers_http
from ingest.local.servers.confinement import confine
from ingest.local.servers.processes import HOST, Children, private_directory
from tasks.units import MiB

REQUEST_BYTES_MAX = 256 * MiB
CONCURRENT_QUERIES_MAX = 4
QUERY_MEMORY_BYTES_MAX = 2048 * MiB
REQUEST_SECONDS_MAX = 300
PASSWORD_VARIABLE = "REPLAYS_LOCAL_CLICKHOUSE_PASSWORD"

# The URL parameters that belong to the transport. All other URL parameters are query settings.
TRANSPORT_PARAMETERS = frozenset(
    {
        *("query", "database", "default_format", "query_id", "session_id", "session_timeout", "session_check"),
        *("user", "password", "quota_key", "role", "compress", "decompress", "enable_http_compression"),
        *("buffer_size", "wait_end_of_query", "send_progress_in_http_headers", "client_protocol_version"),
        *("http_headers_progress_interval_ms", "http_write_exception_in_output_format"),
    }
)
HTTP_STATUS_BY_CODE = {60: 404, 81: 404, 516: 403, 497: 403, 159: 408, 202: 503, 241: 500}
BAD_REQUEST_CODES = frozenset(
    {6, 16, 20, 25, 26, 27, 36, 41, 42, 43, 46, 47, 53, 62, 72, 73, 115, 117, 130, 457, 636}
)
CODE_TOO_LARGE, CODE_AUTHENTICATION, CODE_OTHER = 307, 516, 1002

_INSERT = re.compile(r"\s*INSERT\b", re.IGNORECASE)
# `INSERT INTO t (a, b) FORMAT Native` and a line break, followed by data.
_INLINE_INSERT = re.compile(rb"\s*INSERT\b[^\x00]*?\bFORMAT\s+\w+[ \t\r]*\n", re.IGNORECASE | re.DOTALL)
_INLINE_INSERT_BYTES_MAX = 64 * 1024
_FORMAT_AT_END = re.compile(r"\bFORMAT\s+(\w+)\s*;?\s*\Z", re.IGNORECASE)
_CODE = re.compile(r"Code: (\d+)")
_SETTING_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class ClickHouse(Server):
    """The server process. Data is kept when the server is stopped or killed."""

    name: ClassVar[str] = "clickhouse"

    def __init__(
        self,
        children: Children,
        directory: Path,
        *,
        name: str = "",
        port: int = 0,
        user: str = "default",
        password: str = "",
    ) -> None:
        super().__init__(children, directory, name=name, port=port)
        self.user = user
        self.password = password

    def command(self) -> list[str]:
        """Returns the command line, which uses this interpreter, because chDB is a Python extension."""
        place = ["--data", str(self.directory / "data"), "--port", str(self.port), "--user", self.user]
        return [sys.executable, "-m", "ingest.local.servers.clickhouse", *place]

    def environment(self) -> Mapping[str, str]:
        """Passes the password in an environment variable, because other users can see command lines."""
        return {PASSWORD_VARIABLE: self.password}

    def is_ready(self) -> bool:
        """Returns whether the server responds to /ping, which it does once the engine is open."""
        return answers_http(f"{self.address}/ping")

    @property
    def address(self) -> str:
        """The URL of the HTTP interface."""
        return f"http://{HOST}:{self.port}"


class QueryError(Exception):
    """An error of ClickHouse, with its code and text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.status = HTTP_STATUS_BY_CODE.get(code, 400 if code in BAD_REQUEST_CODES else 500)

    @classmethod
    def from_engine_error(cls, error: Exception) -> QueryError:
        """Parses chDB's exception, whose text contains `Code: N. DB::Exception:`."""
        text = str(error)
        found = _CODE.search(text)
        if not found:
            return cls(CODE_OTHER, f"Code: {CODE_OTHER}. DB::Exception: {text} (UNKNOWN_EXCEPTION)")
        return cls(int(found[1]), text[found.start() :])


@dataclass(frozen=True, slots=True)
class Request:
    """One parsed query. `data` is the data of an INSERT."""

    sql: str
    data: bytes
    answer_format: str
    database: str
    settings: Mapping[str, str]
    parameters: Mapping[str, str]

    @property
    def is_insert(self) -> bool:
        """True if the query writes rows."""
        return _INSERT.match(self.sql) is not None


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a query: its bytes in `format`, and the values of the summary header."""

    body: bytes
    format: str
    rows: int
    bytes_read: int


def request_of(query: Mapping[str, str], body: bytes, header_format: str | None) -> Request:
    """Separates the statement from the data.

    The statement is in the URL or at the start of the body, and the data is in the body.
    """
    sql, data = query.get("query", ""), b""
    if sql:
        data = body
    else:
        inline = _INLINE_INSERT.match(body[:_INLINE_INSERT_BYTES_MAX])
        head = body if inline is None else inline.group(0)
        data = b"" if inline is None else body[inline.end() :]
        sql = head.decode("utf-8", "surrogateescape").strip()
    if data and not _INSERT.match(sql):
        sql, data = sql + data.decode("utf-8", "surrogateescape"), b""
    settings = {
        key: value
        for key, value in query.items()
        if key not in TRANSPORT_PARAMETERS and not key.startswith("param_")
    }
    parameters = {key.removeprefix("param_"): value for key, value in query.items() if key.startswith("param_")}
    answer_format = header_format or query.get("default_format") or "TabSeparated"
    return Request(sql, data, answer_format, query.get("database", ""), settings, parameters)


def quoted(text: str) -> str:
    """Returns the text as a ClickHouse string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


class Engine:
    """The engine with its open data directory.

    `run` is thread-safe and runs at most CONCURRENT_QUERIES_MAX queries concurrently.
    """

    def __init__(self, directory: Path) -> None:
        # The type is Any because chDB ships no type information.
        chdb: Any = importlib.import_module("chdb")
        directory.mkdir(parents=True, exist_ok=True)
        self._chdb, self._directory = chdb, str(directory)
        # This connection keeps the engine open while no request runs.
        self._anchor = self._connect()
        self._slots = threading.BoundedSemaphore(CONCURRENT_QUERIES_MAX)
        self.timezone = self._scalar("SELECT timezone()")
        self.version = self._scalar("SELECT version()")
        # This directory contains the data of INSERTs in progress. Files that a killed server has left there are
        # useless.
        self._spool = directory.parent / "spool"
        shutil.rmtree(self._spool, ignore_errors=True)
        self._spool.mkdir(parents=True)

    def _connect(self) -> Any:
        return self._chdb.connect(self._directory)

    def _scalar(self, sql: str) -> str:
        text: str = self._anchor.query(sql, "TabSeparatedRaw").bytes().decode()
        return text.strip()

    def run(self, request: Request) -> Answer:
        """Runs one query. Raises QueryError."""
        with self._slots:
            connection = self._connect()
            try:
                return self._run(connection, request)
            except RuntimeError as error:
                raise QueryError.from_engine_error(error) from error
            finally:
                connection.close()

    def _run(self, connection: Any, request: Request) -> Answer:
        settings = {"max_memory_usage": str(QUERY_MEMORY_BYTES_MAX), **request.settings}
        for name in settings:
            if not _SETTING_NAME.match(name):
                raise QueryError(115, f"Code: 115. DB::Exception: Unknown setting {name!r} (UNKNOWN_SETTING)")
        connection.query("SET " + ", ".join(f"{name} = {quoted(value)}" for name, value in settings.items()))
        if request.database:
            connection.query("USE `" + request.database.replace("`", "\\`") + "`")
        if request.data:
            return self._insert(connection, request)
        sql, answer_format = request.sql, request.answer_format
        ending = _FORMAT_AT_END.search(sql)
        if ending and not request.is_insert:
            # chDB accepts the format only as an argument.
            sql, answer_format = sql[: ending.start()], ending[1]
        result = connection.query(sql, answer_format, params=dict(request.parameters))
        return Answer(result.bytes() or b"", answer_format, result.rows_read(), result.bytes_read())

    def _insert(self, connection: Any, request: Request) -> Answer:
        """Passes the data of an INSERT to the engine in a file, because a statement cannot contain data in binary
        formats.
        """
        ending = _FORMAT_AT_END.search(request.sql)
        statement = request.sql[: ending.start()] if ending else request.sql
        data_format = ending[1] if ending else "Native"
        handle, path = tempfile.mkstemp(dir=self._spool)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(request.data)
            sql = f"{statement} FROM INFILE {quoted(path)} FORMAT {data_format}"
            result = connection.query(sql, "Null", params=dict(request.parameters))
            return Answer(b"", data_format, result.rows_read(), result.bytes_read())
        finally:
            os.unlink(path)


def decompressed(data: bytes, encoding: str) -> bytes:
    """Decodes a body by its Content-Encoding, up to REQUEST_BYTES_MAX. Raises QueryError for invalid data."""
    try:
        match encoding.lower():
            case "" | "identity":
                return data
            case "gzip":
                plain = gzip.decompress(data)
            case "deflate":
                plain = zlib.decompress(data)
            case "lz4":
                lz4_frame: Any = importlib.import_module("lz4.frame")
                plain = lz4_frame.decompress(data)
            case "zstd":
                import zstandard

                plain = zstandard.ZstdDecompressor().decompressobj().decompress(data)
            case _:
                raise ValueError(f"unknown encoding {encoding}")
    except (ValueError, OSError, EOFError, zlib.error, RuntimeError) as error:
        raise QueryError(354, f"Code: 354. DB::Exception: {encoding} body: {error} (CANNOT_DECOMPRESS)") from error
    if len(plain) > REQUEST_BYTES_MAX:
        raise too_large(len(plain))
    return plain


def too_large(size: int) -> QueryError:
    """Returns the error for a request that exceeds the limit."""
    text = f"Code: {CODE_TOO_LARGE}. DB::Exception: request of {size} bytes, limit {REQUEST_BYTES_MAX}"
    error = QueryError(CODE_TOO_LARGE, f"{text} (TOO_MANY_BYTES)")
    error.status = 413
    return error


class Handler(NonBrowserHandler):
    """Handles one connection of a client."""

    protocol_version = "HTTP/1.1"
    timeout = REQUEST_SECONDS_MAX
    # Without these two settings, small responses wait 40 ms for the client's delayed acknowledgement.
    disable_nagle_algorithm = True
    wbufsize = -1

    engine: ClassVar[Engine]
    user: ClassVar[str] = "default"
    password: ClassVar[str] = ""

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._answer(200, b"", {})

    def _serve(self) -> None:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        query_id = query.get("query_id") or str(uuid.uuid4())
        try:
            body = decompressed(self._body(), self.headers.get("Content-Encoding", ""))
            if url.path in ("/ping", "/replicas_status"):
                self._answer(200, b"Ok.\n", {})
                return
            self._authenticate(query)
            started = time.monotonic_ns()
            request = request_of(query, body, self.headers.get("X-ClickHouse-Format"))
            answer = self.engine.run(request)
        except QueryError as error:
            headers = {"X-ClickHouse-Exception-Code": str(error.code), "X-ClickHouse-Query-Id": query_id}
            self._answer(error.status, f"{error} (version {self.engine.version})\n".encode(), headers)
            return
        written = answer.rows if request.is_insert else 0
        summary = {
            "read_rows": str(answer.rows),
            "read_bytes": str(answer.bytes_read),
            "written_rows": str(written),
            "written_bytes": str(answer.bytes_read if written else 0),
            "total_rows_to_read": "0",
            "result_rows": str(0 if request.is_insert else answer.rows),
            "result_bytes": str(len(answer.body)),
            "elapsed_ns": str(time.monotonic_ns() - started),
        }
        headers = {
            "X-ClickHouse-Summary": json.dumps(summary),
            "X-ClickHouse-Query-Id": query_id,
            "X-ClickHouse-Format": answer.format,
        }
        self._answer(200, answer.body, headers)

    def _authenticate(self, query: Mapping[str, str]) -> None:
        """Checks the user and password from ClickHouse's headers, basic authentication or the URL."""
        if not self.password:
            return
        user = self.headers.get("X-ClickHouse-User") or query.get("user", "default")
        password = self.headers.get("X-ClickHouse-Key") or query.get("password", "")
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "basic":
            try:
                user, _, password = base64.b64decode(token).decode().partition(":")
            except ValueError:
                user = password = ""
        if user != self.user or not hmac.compare_digest(password.encode(), self.password.encode()):
            text = f"Code: 516. DB::Exception: {user}: Authentication failed. (AUTHENTICATION_FAILED)"
            raise QueryError(CODE_AUTHENTICATION, text)

    def _body(self) -> bytes:
        """Reads the whole body, by length or in chunks. If the body exceeds the limit, closes the connection."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return b"".join(self._chunks())
        size = int(self.headers.get("Content-Length") or 0)
        if size > REQUEST_BYTES_MAX:
            self.close_connection = True
            raise too_large(size)
        return self.rfile.read(size)

    def _chunks(self) -> Iterable[bytes]:
        total = 0
        while True:
            size = int(self.rfile.readline(1024).split(b";")[0] or b"0", 16)
            total += size
            if total > REQUEST_BYTES_MAX:
                self.close_connection = True
                raise too_large(total)
            yield self.rfile.read(size)
            self.rfile.readline(1024)
            if not size:
                return

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=UTF-8")
        self.send_header("X-ClickHouse-Timezone", self.engine.timezone)
        self.send_header("X-ClickHouse-Server-Display-Name", "local")
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Does not log requests."""


def main() -> None:
    """Runs the server: `python -m ingest.local.servers.clickhouse --data DIRECTORY --port PORT`.

    The password is read from the environment.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--user", default="default")
    arguments = parser.parse_args()
    # The port is bound first, so that the program exits before the engine opens the data if the port is taken.
    server = HttpServer((HOST, arguments.port), Handler)
    # The engine creates a temporary directory when it opens. A confined process cannot write to the system's
    # temporary directory.
    temporary = arguments.data.parent / "temporary"
    shutil.rmtree(temporary, ignore_errors=True)
    private_directory(temporary)
    os.environ["TMPDIR"] = str(temporary)
    confine(arguments.data.parent)
    Handler.engine = Engine(arguments.data)
    Handler.user = arguments.user
    Handler.password = os.environ.get(PASSWORD_VARIABLE, "")
    server.serve_forever()


if __name__ == "__main__":
    main()
