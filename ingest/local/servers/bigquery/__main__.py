"""The server process; `service.py` handles the requests.

    python -m ingest.local.servers.bigquery --data DIRECTORY --port PORT --grpc-port PORT

Serves datasets, tables and views, `insertAll` with its rules for bad rows and ids, row listing, queries in
GoogleSQL (translated for DuckDB), and the Storage Write API over gRPC (`grpc_server.py`), backed by a data
directory that survives SIGKILL. An unmodified google-cloud-bigquery works with this server. Unsupported calls fail
with an explicit error.
"""

from __future__ import annotations

import argparse
import gzip
import json
import traceback
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

from ingest.local.servers.base import HttpServer, NonBrowserHandler
from ingest.local.servers.bigquery.errors import ApiError, error_body
from ingest.local.servers.bigquery.grpc_server import serve
from ingest.local.servers.bigquery.inserts import INSERT_ID_WINDOW_SECONDS
from ingest.local.servers.bigquery.service import Service
from ingest.local.servers.bigquery.store import Store
from ingest.local.servers.processes import HOST
from tasks.units import MiB

REQUEST_BYTES_MAX = 10 * MiB
REQUEST_SECONDS_MAX = 300


class Handler(NonBrowserHandler):
    """Handles one connection of a client."""

    protocol_version = "HTTP/1.1"
    timeout = REQUEST_SECONDS_MAX
    disable_nagle_algorithm = True
    wbufsize = -1

    service: ClassVar[Service]

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        url = urlsplit(self.path)
        try:
            body = self._body()
            if url.path == "/health":
                self._answer(200, {})
                return
            query = dict(parse_qsl(url.query, keep_blank_values=True))
            content = json.loads(body) if body else {}
            if_match = self.headers.get("If-Match", "")
            answer = self.service.handle(self.command, url.path, query, content, if_match)
            self._answer(204 if answer is None else 200, answer)
        except ApiError as error:
            self._answer(error.code, error_body(error.code, error.reason, str(error), error.location))
        except ValueError as error:
            self._answer(400, error_body(400, "parseError", f"Parse error: {error}"))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except Exception as error:
            traceback.print_exc()
            self._answer(500, error_body(500, "backendError", f"{type(error).__name__}: {error}"))

    def _body(self) -> bytes:
        """Returns the inflated body.

        The service's limit of 10 MB applies both before and after decompression.
        """
        size = int(self.headers.get("Content-Length") or 0)
        if size > REQUEST_BYTES_MAX:
            self.close_connection = True
            raise self._too_large(size)
        data = self.rfile.read(size)
        if self.headers.get("Content-Encoding", "").lower() == "gzip":
            try:
                data = gzip.decompress(data)
            except (OSError, EOFError, zlib.error) as error:
                raise ValueError(f"gzip: {error}") from error
            if len(data) > REQUEST_BYTES_MAX:
                raise self._too_large(len(data))
        return data

    def _too_large(self, size: int) -> ApiError:
        text = f"Request of {size} bytes exceeds the limit of {REQUEST_BYTES_MAX} bytes."
        return ApiError(413, "requestTooLarge", text)

    def _answer(self, status: int, body: Mapping[str, Any] | None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        if self.close_connection:
            self.send_header("Connection", "close")
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Does not log requests."""


def main() -> None:
    """Runs the server: `python -m ingest.local.servers.bigquery --data DIRECTORY --port PORT --grpc-port PORT`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--grpc-port", type=int, required=True)
    parser.add_argument("--insert-id-window-seconds", type=float, default=INSERT_ID_WINDOW_SECONDS)
    parser.add_argument("--streaming-buffer-seconds", type=float, default=0.0)
    arguments = parser.parse_args()
    server = HttpServer((HOST, arguments.port), Handler)
    store = Store(
        arguments.data / "bigquery.duckdb",
        insert_id_window_seconds=arguments.insert_id_window_seconds,
        streaming_buffer_seconds=arguments.streaming_buffer_seconds,
    )
    Handler.service = Service(store)
    # Kept in a variable, because the service stops when its object is garbage-collected.
    grpc_server = serve(store, arguments.grpc_port)
    server.serve_forever()
    grpc_server.stop(None)


if __name__ == "__main__":
    main()
