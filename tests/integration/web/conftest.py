"""One library of replays for every test here: reading changes nothing."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from ingest.local.fleet import isolated
from ingest.local.launch import settings_of
from ingest.local.stack import Stack
from ingest.web.reads import Reads
from tests.kit.library import Library, fill


@pytest.fixture(scope="session")
def library(stack: Stack) -> Library:
    """The replays of `tests.kit.library`, in a bucket and a database of their own."""
    stack.start(["gcs", "clickhouse", "redis", "kafka"])
    names = isolated(f"library{uuid.uuid4().hex[:8]}", stack.addresses["redis"], 9)
    return fill(settings_of({**stack.settings(), **names, "REPLAYS_SINKS": "gcs,clickhouse,dead_letter"}))


@pytest.fixture
def reads(library: Library) -> Iterator[Reads]:
    """The library behind its reads."""
    opened = Reads(library.settings)
    yield opened
    opened.close()
