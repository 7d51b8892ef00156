"""A chaos run fails if a process was aborted, even if nothing was lost."""

from __future__ import annotations

from pathlib import Path

from tools.chaos.result import Result
from tools.chaos.run import crash_lines

ABORT = "python: rdkafka_queue.h:1086: rd_kafka_enq_once_del_source_return: Assertion `eonce->refcnt > 0' failed."


def test_aborts_are_found_in_the_log(tmp_path: Path):
    """A failed assertion of a C library is found; log lines that mention one are not."""
    log = tmp_path / "reader-1.log"
    log.write_text(f'{{"event": "reader_started"}}\n{ABORT}\n{{"event": "Assertion holds"}}\n')

    assert crash_lines(log) == [ABORT]
    assert crash_lines(tmp_path / "missing.log") == []


def test_a_crash_fails_the_run():
    """The verdict names the process and its last line."""
    result = Result(seed=1, kafka="tansu", fault_seconds=1.0)
    result.crashes = [f"reader-1 crashed: {ABORT}"]

    result.judge()

    assert not result.ok
    assert "reader-1 crashed" in result.error
