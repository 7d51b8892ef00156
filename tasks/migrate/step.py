"""Types shared by migration steps."""

from __future__ import annotations

from pathlib import Path

import tasks.sinks

SCHEMA = Path(tasks.sinks.__file__).parent / "schema"
DAY_MILLISECONDS = 24 * 3_600_000
