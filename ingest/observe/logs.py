"""The one log line that tells a batch's whole life. How logs look is `tasks.observe.logs`."""

from __future__ import annotations

import structlog

from ingest.observe.journal import End, Journey

log = structlog.get_logger("ingest.batch")


def batch_line(journey: Journey) -> None:
    """One line a batch, when its life here ends: ids, sizes, and the seconds from its cut to each milestone."""
    if journey.outcome is End.COMMITTED and not journey.failures:
        log.info("batch", **journey.summary())
    else:
        log.warning("batch", **journey.summary())
