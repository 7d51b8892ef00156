"""The tracer provider configured by the standard OTEL_* variables.

OTEL_TRACES_EXPORTER selects the exporter (otlp by default, console, none). OTEL_EXPORTER_OTLP_PROTOCOL or
OTEL_EXPORTER_OTLP_TRACES_PROTOCOL selects the OTLP protocol. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES name
the service. The SDK itself reads all other variables (endpoint, headers, sampler).
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HTTP, GRPC = "http/protobuf", "grpc"
GRPC_EXTRA = "replays-ingest[otel-grpc]"


class NotExported(Exception):
    """An environment variable selects an exporter or a protocol that is not available. The message names the
    variable and states what to do.
    """


def provider(service: str, environ: Mapping[str, str]) -> Any:
    """Returns a TracerProvider with the configured exporters. `service` is the default service name.

    Raises NotExported, or ImportError if the extra `otel` is not installed.
    """
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = environ.get("OTEL_SERVICE_NAME") or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    tracer_provider = TracerProvider(resource=Resource.create({} if named else {"service.name": service}))
    for name in environ.get("OTEL_TRACES_EXPORTER", "").split(",") or ("",):
        exporter = _exporter(name.strip().lower(), environ)
        if exporter is not None:
            tracer_provider.add_span_processor(BatchSpanProcessor(exporter))
    return tracer_provider


def _exporter(name: str, environ: Mapping[str, str]) -> Any:
    if name == "none":
        return None
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if name in ("", "otlp"):
        return _otlp(environ)
    raise NotExported(f"OTEL_TRACES_EXPORTER={name}: use otlp, console or none")


def _otlp(environ: Mapping[str, str]) -> Any:
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if protocol := environ.get(variable, "").strip().lower():
            break
    else:
        variable, protocol = "", HTTP
    if protocol == HTTP:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    if protocol == GRPC:
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc
        except ImportError as error:
            raise NotExported(
                f"{variable}=grpc, but {error.name} is not installed: install {GRPC_EXTRA}"
            ) from error
        return OverGrpc()
    raise NotExported(f"{variable}={protocol}: use {HTTP} or {GRPC}")
