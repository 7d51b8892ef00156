"""What all peers share: how a recording is uploaded, how much is in flight, how often offsets are committed.

The official client gets a connection pool as large as the number of threads, because it would otherwise reopen
connections.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from google.auth.credentials import AnonymousCredentials
from google.cloud import storage  # type: ignore[attr-defined]
from requests.adapters import HTTPAdapter

from benchmarks.peers_parse import Found

COMMIT_SECONDS = 0.5
SESSION_MS = 6000
PENDING_MAX = 256  # segments that one process has read and not yet stored
BATCH_SEGMENTS = 62
BATCH_SECONDS = 1.0
QUEUED_KBYTES_MAX = 32 * 1024


class Upload:
    """Uploads one object per segment through the official client."""

    def __init__(self, endpoint: str, bucket: str, threads: int) -> None:
        options = {"api_endpoint": endpoint}
        client = storage.Client(
            project="benchmark",
            credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
            client_options=options,
        )
        adapter = HTTPAdapter(pool_connections=4, pool_maxsize=threads)
        client._http.mount("http://", adapter)
        client._http.mount("https://", adapter)
        self._bucket = client.bucket(bucket)

    def __call__(self, name: str, content: bytes) -> None:
        self._bucket.blob(name).upload_from_string(content, content_type="application/octet-stream")


def named(parse: Any, value: bytes) -> tuple[str, Found]:
    """Returns (object name, parser output)."""
    found: Found = parse(value)
    return found.name, found


def consumer_config(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the configuration of a peer that uses confluent-kafka's Consumer and commits offsets itself."""
    return {
        "bootstrap.servers": arguments.brokers,
        "group.id": arguments.group,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "session.timeout.ms": SESSION_MS,
        "queued.max.messages.kbytes": QUEUED_KBYTES_MAX,
    }


def peer_parser(description: str, kinds: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Returns a peer's argument parser. `kinds`: choices for the first argument; empty if the peer takes none."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    if kinds:
        parser.add_argument("kind", choices=kinds)
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--bucket", default="replays")
    parser.add_argument("--threads", type=int, default=32)
    return parser
