"""The library of replays and the functions that read it, and a store for tests that add replays of their own."""

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
    """The functions with which commands and pages read replays."""
    opened = Reads(library.settings)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def separate_settings(stack: Stack) -> Settings:
    """Settings with a separate bucket and separate tables, already created, for tests that store their own
    replays."""
    made = settings_of(variables(stack, "watched", WATCHED_DATABASE))
    for _ in migrate(made):
        pass
    return made
