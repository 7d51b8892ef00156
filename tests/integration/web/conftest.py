"""The library of replays behind its reads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ingest.web.reads import Reads
from tests.kit.library import Library


@pytest.fixture
def reads(library: Library) -> Iterator[Reads]:
    """What commands and pages read replays with."""
    opened = Reads(library.settings)
    yield opened
    opened.close()
