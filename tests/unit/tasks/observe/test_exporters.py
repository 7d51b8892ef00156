"""Tests where spans are sent, according to the standard OTEL_* variables."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

from tasks.observe.exporters import NotExported, provider


def processors(made: Any) -> list[str]:
    """Returns the class names of a provider's exporters."""
    found = [type(each.span_exporter).__module__ for each in made._active_span_processor._span_processors]
    made.shutdown()
    return found


OTLP_HTTP = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
OTLP_GRPC = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"
CONSOLE = "opentelemetry.sdk.trace.export"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, [OTLP_HTTP]),
        ({"OTEL_TRACES_EXPORTER": ""}, [OTLP_HTTP]),
        ({"OTEL_TRACES_EXPORTER": "none"}, []),
        ({"OTEL_TRACES_EXPORTER": "console"}, [CONSOLE]),
        ({"OTEL_TRACES_EXPORTER": "otlp, console"}, [OTLP_HTTP, CONSOLE]),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, [OTLP_GRPC]),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, [OTLP_HTTP]),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            [OTLP_GRPC],
        ),
    ],
)
def test_the_variables_choose_exporter_and_protocol(environ: dict[str, str], expected: list[str]):
    assert processors(provider("replays-worker", environ)) == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "replays-worker"),
        ({"OTEL_SERVICE_NAME": "ours"}, "ours"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=theirs,team=replays"}, "theirs"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "team=replays"}, "replays-worker"),
    ],
)
def test_the_service_has_its_configured_name(
    environ: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
):
    """The default service name is used only if neither OTEL variable sets a name."""
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)  # The SDK reads these variables itself.

    made = provider("replays-worker", {**environ, "OTEL_TRACES_EXPORTER": "none"})

    assert made.resource.attributes["service.name"] == expected


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
    ],
)
def test_an_unsupported_exporter_or_protocol_is_refused(environ: dict[str, str]):
    """An unsupported exporter or protocol is refused, and the error names the variable and the choices."""
    with pytest.raises(NotExported, match="use ") as refused:
        provider("replays-worker", environ)

    assert str(refused.value).startswith("=".join(*environ.items()))


def test_grpc_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith(OTLP_GRPC):
            raise ImportError(name, name="opentelemetry.exporter.otlp.proto.grpc")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)

    with pytest.raises(NotExported, match=r"install replays-ingest\[otel-grpc\]"):
        provider("replays-worker", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
