"""Traces and error reports are optional, linked to the messages that caused them, and free of secrets."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from pydantic import SecretStr

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Batch, Message
from ingest.observe.tracing import Tracing
from ingest.settings import Settings
from ingest.testing.runtime import PARTITION
from tasks.observe import telemetry
from tests.kit.batches import make_batch

TRACES = [f"00-{number:032x}-{number:016x}-01" for number in range(1, 100)]


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Enables tracing to memory, and disables it afterwards."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry.configure(Settings(tracing=True), "test", provider)
    yield exporter
    telemetry.configure(Settings(), "test")


def batch(start: int, stop: int) -> Batch:
    return make_batch(stop - start, start)


def message(offset: int, traceparent: str | None) -> Message:
    headers = (("traceparent", traceparent.encode()),) if traceparent else ()
    return Message(PARTITION, 1, offset, b"", headers=headers)


def test_a_batch_belongs_to_its_first_traced_message_and_links_to_the_others(spans: InMemorySpanExporter):
    """A batch has one parent, and links only to the other traced messages of its own range."""
    tracing = Tracing()
    tracing.polled([message(0, None), message(1, TRACES[0]), message(2, TRACES[1]), message(3, TRACES[2])])

    traceparent = tracing.begin(batch(0, 3))
    again = tracing.begin(batch(0, 3))  # the second stage of the same batch
    tracing.begin(batch(3, 4))
    for settled in (batch(0, 3), batch(3, 4)):
        tracing.observe(on.Ticked(), [do.Discard(settled)], 0.0)

    first, second = spans.get_finished_spans()
    assert traceparent == again
    assert traceparent.split("-")[1] == TRACES[0].split("-")[1]
    assert [f"{link.context.trace_id:032x}" for link in first.links] == [TRACES[1].split("-")[1]]
    assert f"{second.context.trace_id:032x}" == TRACES[2].split("-")[1]
    assert (first.attributes or {})["replays.outcome"] == "settled"


def test_a_batch_of_a_lost_partition_ends_its_span(spans: InMemorySpanExporter):
    """The span of a batch ends when its partition is lost; otherwise it would be kept forever."""
    tracing = Tracing()
    tracing.begin(batch(0, 3))

    tracing.observe(on.PartitionsLost((PARTITION,)), [], 0.0)

    (span,) = spans.get_finished_spans()
    assert (span.attributes or {})["replays.outcome"] == "released"


def test_an_invalid_traceparent_header_starts_a_new_trace(spans: InMemorySpanExporter):
    """An invalid traceparent header, which any producer can send, starts a new trace."""
    tracing = Tracing()
    tracing.polled([message(0, "00-zz-\xff")])

    assert tracing.begin(batch(0, 1)).startswith("00-")


def test_the_error_of_a_failed_flush_has_no_secrets(spans: InMemorySpanExporter):
    """The span of a failed flush has the error message as its status, with passwords removed from URLs."""
    request = SimpleNamespace(headers={"traceparent": TRACES[0]}, retries=2)

    with pytest.raises(ConnectionError), telemetry.sink_span(request, "clickhouse"):
        raise ConnectionError("https://default:hunter2@ch:8443 refused")

    (span,) = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert "hunter2" not in str(span.to_json())
    assert (span.attributes or {})["replays.retries"] == 2


def test_tracing_is_off_by_default():
    """By default tracing is disabled, and there is no span and no header."""
    tracing = Tracing()
    tracing.polled([message(0, TRACES[0])])

    assert tracing.begin(batch(0, 1)) == ""
    with telemetry.sink_span(None, "gcs"):
        pass


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    """If the extra for tracing is missing, the error names the setting, the package, and how to install it."""
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith(("opentelemetry", "sentry_sdk")):
            raise ImportError(name, name=name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)

    with pytest.raises(telemetry.TelemetryMissing, match=r"replays-ingest\[otel\]"):
        telemetry.configure(Settings(tracing=True), "test")
    telemetry.configure(Settings(), "test")
    with pytest.raises(telemetry.TelemetryMissing, match=r"replays-ingest\[sentry\]"):
        telemetry.configure(Settings(sentry_dsn=SecretStr("https://x@sentry.example/1")), "test")


def test_reports_to_sentry_are_scrubbed():
    """Secrets are recognized by name and by form, at any depth; bytes are replaced by their length."""
    event = {
        "message": "redis://replays:hunter2@redis refused",
        "extra": {"kafka_sasl_password": "hunter2", "body": b"hunter2"},
        "exception": {"values": [{"value": "password=hunter2"}]},
    }

    assert "hunter2" not in str(telemetry.scrub(event, {}))
