"""The log line of a finished batch. `tasks.observe.logs` formats it."""

from __future__ import annotations

import structlog

from ingest.observe.journal import BatchEnd, Journey

log = structlog.get_logger("ingest.batch")


def batch_line(journey: Journey) -> None:
    """Logs the end of a batch in one line: ids, sizes, and seconds from its cut to each milestone."""
    if journey.outcome is BatchEnd.COMMITTED and not journey.failures:
        log.info("batch", **journey.summary())
    else:
        log.warning("batch", **journey.summary())
