"""BigQuery: our emulator on DuckDB.

The emulator implements the REST calls that streaming, migrations and queries need and, on a second port, the
Storage Write API over gRPC.

This module only starts the process `python -m ingest.local.servers.bigquery`, so importing the module loads
neither DuckDB nor Arrow nor sqlglot.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

from ingest.local.servers.base import Server, answers_http
from ingest.local.servers.processes import HOST, Children, free_port


class BigQuery(Server):
    """The server process. Data survives stops and kills; recorded insertIds do not."""

    name: ClassVar[str] = "bigquery"

    def __init__(
        self,
        children: Children,
        directory: Path,
        *,
        name: str = "",
        port: int = 0,
        insert_id_window_seconds: float = 60.0,
        streaming_buffer_seconds: float = 0.0,
    ) -> None:
        super().__init__(children, directory, name=name, port=port)
        self.insert_id_window_seconds = insert_id_window_seconds
        self.streaming_buffer_seconds = streaming_buffer_seconds
        self.grpc_port = self._paired_with = 0

    def command(self) -> list[str]:
        """Returns the command line, which uses this interpreter."""
        # The gRPC port stays the same across restarts. If either port is taken, both are replaced.
        if self._paired_with != self.port:
            self.grpc_port, self._paired_with = free_port(), self.port
        window = ["--insert-id-window-seconds", str(self.insert_id_window_seconds)]
        place = ["--data", str(self.directory), "--port", str(self.port)]
        place += ["--grpc-port", str(self.grpc_port)]
        buffer = ["--streaming-buffer-seconds", str(self.streaming_buffer_seconds)]
        return [sys.executable, "-m", "ingest.local.servers.bigquery", *place, *window, *buffer]

    def is_ready(self) -> bool:
        """Returns whether the server responds, which it does once the database is open."""
        return answers_http(f"{self.address}/health")

    @property
    def address(self) -> str:
        """Value for `ClientOptions(api_endpoint=...)`."""
        return f"http://{HOST}:{self.port}"

    @property
    def storage_address(self) -> str:
        """Value for `REPLAYS_BIGQUERY_STORAGE_ENDPOINT`."""
        return f"http://{HOST}:{self.grpc_port}"
