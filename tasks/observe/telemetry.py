"""Traces and error reports, both optional: OpenTelemetry with the extra `otel`, Sentry with the extra `sentry`.

A batch's trace begins at the reader; its W3C traceparent travels in the Celery header `traceparent`, and each
flush task's work on its sink is a span below it. Without the setting every function here costs one comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tasks.loading import SettingsError
from tasks.observe import exporters
from tasks.observe.logs import clean
from tasks.settings import Settings, telemetry_variables
from tasks.wire import SinkName

HEADER = "traceparent"
SCOPE = "replays-ingest"
CELERY_ECHOES = ("celery.app.trace", "celery.backends.*")


class TelemetryMissing(SettingsError):
    """A setting asks for a package that is not installed. The text says which extra has it."""


class _State:
    """The tracer of this process; None while tracing is off."""

    tracer: Any = None
    provider: Any = None


def configure(settings: Settings, service: str, provider: Any = None) -> None:
    """Switches on what the settings ask for, once a process. `provider` is an SDK TracerProvider, for tests.

    Exporters, sampling and the service's name follow the standard OTEL_* variables. Raises TelemetryMissing.
    """
    if settings.tracing:
        _State.provider = provider or _provider(service)
        _State.tracer = _State.provider.get_tracer(SCOPE)
    else:
        _State.tracer = _State.provider = None
    dsn = settings.sentry_dsn.get_secret_value()
    if dsn:
        _sentry(dsn, service)


def _provider(service: str) -> Any:
    try:
        return exporters.provider(service, telemetry_variables())
    except exporters.NotExported as error:
        raise TelemetryMissing(str(error)) from error
    except ImportError as error:
        raise TelemetryMissing(
            f"REPLAYS_TRACING is on, but {error.name} is not installed: install replays-ingest[otel]"
        ) from error


def _sentry(dsn: str, service: str) -> None:
    try:
        import sentry_sdk
        from sentry_sdk.integrations.logging import ignore_logger
    except ImportError as error:
        raise TelemetryMissing(
            "REPLAYS_SENTRY_DSN is set, but sentry_sdk is not installed: install replays-ingest[sentry]"
        ) from error
    # The failure of a task is an event with its traceback; Celery then logs it, and its chord's, as errors.
    for echo in CELERY_ECHOES:
        ignore_logger(echo)
    sentry_sdk.init(
        dsn=dsn,
        server_name=None,
        send_default_pii=False,
        include_local_variables=False,  # they hold recordings
        max_request_body_size="never",
        before_send=scrub,
        traces_sample_rate=0.0,
    )
    sentry_sdk.set_tag("service", service)


def scrub(event: Any, hint: Any) -> Any:
    """What leaves for Sentry holds no secret and no payload. Takes and returns an event."""
    return clean(event)


def tracer() -> Any:
    """The OpenTelemetry tracer, or None while tracing is off."""
    return _State.tracer


def flush() -> None:
    """Sends what is still held, before the process ends."""
    if _State.provider is not None:
        _State.provider.force_flush(2000)


def context_of(traceparent: str) -> Any:
    """The OpenTelemetry context that a traceparent names; an empty one when it is not well-formed."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({HEADER: traceparent})


def traceparent_of(span: Any) -> str:
    """How a span is named on the wire."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


@contextmanager
def sink_span(request: Any, sink: SinkName, **attributes: Any) -> Iterator[None]:
    """The work of one flush task on its sink, below its batch's span. `request` is the Celery task's."""
    if _State.tracer is None:
        yield
        return
    from opentelemetry.trace import SpanKind, Status, StatusCode

    traceparent = (getattr(request, "headers", None) or {}).get(HEADER) or getattr(request, HEADER, "") or ""
    with _State.tracer.start_as_current_span(
        f"flush {sink}",
        context=context_of(traceparent),
        kind=SpanKind.CONSUMER,
        attributes={
            "replays.sink": sink,
            "replays.retries": int(getattr(request, "retries", 0) or 0),
            **attributes,
        },
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield
        except Exception as error:
            span.set_status(Status(StatusCode.ERROR, str(clean(f"{type(error).__name__}: {error}"))[:300]))
            raise
