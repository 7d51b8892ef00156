"""Replaces log lines of Celery that do not state what to do.

Celery logs each attempt to reach Redis, but does not state what the operator should do. This module replaces these
lines with one line, in the form that the reader and the commands use, until the connection is back. Celery also
logs a traceback for each chord with a failed task. That line is dropped, because the task's own `flush` line
already states the error.

Flower also logs each of its own attempts to reach workers. These lines are dropped while a reported Redis fault
lasts.
"""

from __future__ import annotations

import logging

import structlog

from tasks.connection import fault_of
from tasks.faults import Fault, Server

CONNECTING = ("celery.worker.consumer.consumer", "celery.worker.consumer.connection")
CHORDS = "celery.backends.redis"
FLOWER = ("flower.events", "flower.inspector")
FLOWER_ATTEMPTS = ("Failed to capture events", "Failed to enable events", "Inspect method %s failed")
log = structlog.get_logger(__name__)


class ConnectionLines(logging.Filter):
    """Logs one line when a Redis fault begins and one line when it ends."""

    def __init__(self) -> None:
        super().__init__()
        self._problem = ""

    def report(self, found: Fault) -> None:
        """Logs this Redis fault, unless it equals the last logged fault."""
        if found.problem != self._problem:
            _log(found)
        self._problem = found.problem

    def ended(self) -> None:
        """If a Redis fault has been logged, logs that Redis can be used again."""
        if self._problem:
            self._problem = ""
            log.info("redis_usable")

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether a line of Celery or Flower is to be logged."""
        text = str(record.msg)
        if text.startswith("Connected to"):
            self.ended()
        if text.startswith(FLOWER_ATTEMPTS):
            return not self._problem
        if not text.startswith("consumer: Cannot connect to") or not isinstance(record.args, tuple):
            return True
        error = next((argument for argument in record.args if isinstance(argument, BaseException)), None)
        if error is None:
            return True
        self.report(fault_of(error))
        return False


def without_failed_chords(record: logging.LogRecord) -> bool:
    """False for a line about a chord whose flush task raised Held, because the task's own line reports that."""
    return not (str(record.msg).startswith("Chord %r raised") and "raised Held(" in record.getMessage())


connection_lines = ConnectionLines()


def report(found: Fault) -> None:
    """Logs a fault that our own check found. If Celery then fails to connect to Redis because of the same fault,
    that failure is not logged."""
    if found.server is Server.REDIS:
        connection_lines.report(found)
    else:
        _log(found)


def _log(found: Fault) -> None:
    log.warning(f"{found.server}_unusable", error=found.problem, what_to_do=found.what_to_do)


def install() -> None:
    """Installs the filters in this process. Repeated calls have no effect."""
    for name in (*CONNECTING, *FLOWER):
        logging.getLogger(name).addFilter(connection_lines)
    logging.getLogger(CHORDS).addFilter(without_failed_chords)
