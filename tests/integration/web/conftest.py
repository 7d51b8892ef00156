"""The library of replays behind its reads, and a place for tests to store what they watch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ingest.local.launch import settings_of
from ingest.local.stack import Stack
from ingest.settings import Settings
from ingest.web.reads import Reads
from tasks.migrate import migrate
from tests.integration.conftest import variables
from tests.kit.library import Library

WATCHED_DATABASE = 12


@pytest.fixture
def reads(library: Library) -> Iterator[Reads]:
    """What commands and pages read replays with."""
    opened = Reads(library.settings)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def watched(stack: Stack) -> Settings:
    """Settings of a bucket and tables of their own, which are there, for tests that store what they watch."""
    made = settings_of(variables(stack, "watched", WATCHED_DATABASE))
    for _ in migrate(made):
        pass
    return made
