"""The reader logs one line per batch, and no line contains a payload or a secret."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from pydantic import SecretStr

from ingest.core import events as on
from ingest.observe.logs import batch_line
from ingest.settings import Settings
from ingest.testing.runtime import PARTITION
from tasks.observe.logs import configure
from tests.kit.observed_reader import Driver

PASSWORD = "hunter2-correct-horse"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Configures logging as in the reader and captures the lines as text; the configuration is restored
    afterwards.
    """
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure(Settings(log_format="json"), stream)
    yield stream
    root.handlers[:], root.level = before, level
    structlog.reset_defaults()


def test_a_batch_is_one_line_from_cut_to_commit(lines: io.StringIO):
    """From cut to commit, a batch is one log line with ids, sizes, and the seconds from the cut to each
    milestone.
    """
    driver = Driver(batch_messages_max=2)
    driver.assign()
    driver.message()
    driver.now += 0.5
    driver.message()
    driver.acknowledge(0.1)
    driver.complete(0.2)
    driver.complete(0.4)
    driver.acknowledge(0.1)
    driver.advance(1.0)
    driver.acknowledge(0.0)

    (journey,) = driver.journeys
    batch_line(journey)

    line = json.loads(lines.getvalue())
    assert line["event"] == "batch"
    assert line["batch"] == "ingest-replay-recordings-0-0-2"
    assert (line["partition"], line["start"], line["stop"], line["segments"]) == (0, 0, 2, 2)
    assert line["outcome"] == "committed"
    assert line["cut_by"] == "count"
    assert line["open_seconds"] == pytest.approx(0.5)
    steps = ["recorded", "dispatched", "blobs", "rows", "settled", "committed"]
    times = [line[f"{step}_seconds"] for step in steps]
    assert times == sorted(times)
    assert times == pytest.approx([0.1, 0.1, 0.3, 0.7, 0.7, 0.8])
    assert "xxxx" not in lines.getvalue()


def test_a_batch_of_a_lost_partition_is_logged_as_lost():
    """A batch of a lost partition is logged as lost, because the next owner cuts the batch again."""
    driver = Driver(batch_messages_max=1)
    driver.assign()
    driver.message()
    driver.acknowledge()

    driver.handle_event(on.PartitionsLost((PARTITION,)))

    assert [journey.outcome for journey in driver.journeys] == ["lost"]
    assert driver.value("replays_reader_batches_released_total") == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"redis_url": f"redis://reader:{PASSWORD}@redis:6379/0"},
        {"error": f"AuthenticationError: redis://:{PASSWORD}@redis:6379/0 refused"},
        {"kafka_sasl_password": PASSWORD},
        {"settings": {"clickhouse_password": PASSWORD, "user": "default"}},
        {"value": SecretStr(PASSWORD)},
        {"error": f"cannot log in with password={PASSWORD}"},
        {"options": [f"sasl.password: {PASSWORD}"]},
        {"sentry_dsn": f"https://{PASSWORD}@sentry.example/1"},
        {"body": PASSWORD.encode()},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_secret_is_hidden_in_any_field(lines: io.StringIO, fields: dict[str, object]):
    """Secrets are recognized by name, by type, and by the form of a URL or an assignment; bytes are never
    shown.
    """
    structlog.get_logger("test").warning("something", **fields)

    assert PASSWORD not in lines.getvalue()
    assert json.loads(lines.getvalue())["event"] == "something"


def test_a_library_that_logs_a_password_is_cleaned_too(lines: io.StringIO):
    """A password that a library logs is removed, including from tracebacks, because the standard logging module
    uses the same filter.
    """
    try:
        raise ConnectionError(f"amqp://celery:{PASSWORD}@broker")
    except ConnectionError:
        logging.getLogger("celery").exception("cannot connect to %s", f"redis://x:{PASSWORD}@h")

    line = json.loads(lines.getvalue())
    assert PASSWORD not in lines.getvalue()
    assert "ConnectionError" in line["exception"]


def test_a_terminal_gets_text():
    """If `log_format` is `text`, log lines are text even if the output is not a terminal."""
    root = logging.getLogger()
    before = root.handlers[:]
    try:
        stream = io.StringIO()
        configure(Settings(log_format="text"), stream)
        structlog.get_logger("test").info("hello", who="you")
        assert "hello" in stream.getvalue()
        with pytest.raises(json.JSONDecodeError):
            json.loads(stream.getvalue())
    finally:
        root.handlers[:] = before
        structlog.reset_defaults()
