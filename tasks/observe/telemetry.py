"""Traces and error reports, both optional: OpenTelemetry with the extra `otel`, Sentry with the extra `sentry`.

A batch's trace starts in the reader; its W3C traceparent is sent in the Celery header `traceparent`, and each
flush task's sink call is a child span. When tracing is disabled, every function costs one comparison.
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
DUPLICATE_CELERY_LOGGERS = ("celery.app.trace", "celery.backends.*")


class TelemetryMissing(SettingsError):
    """A setting requires a package that is not installed. The message names the extra."""


class _State:
    """The tracer of this process; None if tracing is disabled."""

    tracer: Any = None
    provider: Any = None


def configure(settings: Settings, service: str, provider: Any = None) -> None:
    """Enables tracing and error reports as configured, once per process. `provider` is an SDK TracerProvider,
    for tests.

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
    # A failed task is reported as one event with its traceback. Celery also logs one error for the task and one
    # for its chord, which would be reported as further events.
    for name in DUPLICATE_CELERY_LOGGERS:
        ignore_logger(name)
    sentry_sdk.init(
        dsn=dsn,
        server_name=None,
        send_default_pii=False,
        include_local_variables=False,  # local variables may contain recordings
        max_request_body_size="never",
        before_send=scrub,
        traces_sample_rate=0.0,
    )
    sentry_sdk.set_tag("service", service)


def scrub(event: Any, hint: Any) -> Any:
    """Removes secrets and payloads from a Sentry event."""
    return clean(event)


def tracer() -> Any:
    """Returns the OpenTelemetry tracer, or None if tracing is disabled."""
    return _State.tracer


def flush() -> None:
    """Sends buffered data before the process ends."""
    if _State.provider is not None:
        _State.provider.force_flush(2000)


def context_of(traceparent: str) -> Any:
    """Returns the OpenTelemetry context of a traceparent; empty if malformed."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({HEADER: traceparent})


def traceparent_of(span: Any) -> str:
    """Returns the traceparent of a span."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


@contextmanager
def sink_span(request: Any, sink: SinkName, **attributes: Any) -> Iterator[None]:
    """The span of a flush task's sink call, a child of the batch's span. `request` is the request of the Celery
    task."""
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
