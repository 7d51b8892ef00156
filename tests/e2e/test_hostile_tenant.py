"""One project sends every message known to be expensive; another project loses nothing.

The other project's additional delay is not tested here: `python -m tests.cost.running` measures it, and
docs/cost.md has the result.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cost.running import (
    MEMORY_BYTES_MAX,
    PATIENT_SETTINGS,
    hostile_messages,
    limit_memory,
    send_steadily,
    steady_rows,
    unaccounted,
)
from tests.kit.whole_system import System

pytestmark = pytest.mark.timeout(300)
RAW_BYTES = 500_000
SEGMENTS = 40


def test_every_costly_message_is_accounted_for_and_the_other_project_is_complete(tmp_path: Path) -> None:
    """Expensive messages of every shape, at a reduced size, pass through one reader with the memory limit of
    its manifest.
    """
    names, values = zip(*hostile_messages(RAW_BYTES), strict=True)
    with System(tmp_path, **PATIENT_SETTINGS) as system:
        system.load(20)
        system.wait_until_committed()
        limit_memory(system)

        _, places = send_steadily(system, 0, SEGMENTS, 20.0, values)
        system.wait_until_committed(200)

        assert system.reader.starts == 1
        assert system.reader_peak_bytes() < MEMORY_BYTES_MAX
        assert steady_rows(system) == SEGMENTS
        assert [names[number] for number in unaccounted(system, places)] == []
        assert system.metric("replays_reader_batches_parked_total") == 0
