"""Structured logging for both packages, as JSON or text, without payloads or secrets.

Every line passes through `redact`, including the lines of libraries.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import IO, Any

import structlog
from pydantic import SecretStr

from tasks.printed import HIDDEN, ascii_json, printable, without_secrets
from tasks.settings import Settings

TEXT_CHARACTERS_MAX = 2000  # longer texts are cut, because server errors may quote request data
_SECRET_NAME = re.compile(
    r"(^|_|\.|-)(password|passwd|secret|dsn|authorization|credentials?|api_?key|access_token|private_key)($|_|\.|-)",
    re.IGNORECASE,
)


def redact(logger: Any, method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Hides secrets by name and pattern, and replaces bytes with their length. A structlog processor."""
    for key, value in line.items():
        line[key] = HIDDEN if _SECRET_NAME.search(key) and value else clean(value)
    return line


def clean(value: Any) -> Any:
    """Returns the value without secrets and payloads, cut to a maximum length."""
    if isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, str):
        text = without_secrets(value)
        return text if len(text) <= TEXT_CHARACTERS_MAX else text[:TEXT_CHARACTERS_MAX] + "…"
    if isinstance(value, Mapping):
        return {key: HIDDEN if _SECRET_NAME.search(str(key)) else clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [clean(item) for item in value]
    return value


def for_terminal(logger: Any, method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escapes control characters, except the line breaks of tracebacks. A structlog processor."""
    for key, value in line.items():
        if key in ("exception", "stack") and isinstance(value, str):
            line[key] = "\n".join(map(printable, value.split("\n")))
        elif isinstance(value, str):
            line[key] = printable(value)
        elif isinstance(value, Mapping | list):
            line[key] = printable(repr(value))
    return line


def _json_line(line: Any, **options: Any) -> str:
    return ascii_json(line, options.get("default"))


def as_json(settings: Settings, stream: IO[str]) -> bool:
    """Returns True if log lines are written to this stream as JSON."""
    return settings.log_format == "json" or (settings.log_format == "auto" and not stream.isatty())


def to_standard_error() -> None:
    """Configures structlog for commands, whose standard output holds only their result: warnings and errors go to
    standard error. Without this configuration, structlog prints all lines to standard output.
    """
    structlog.configure(
        processors=[
            _warnings_only,
            structlog.processors.add_log_level,
            redact,
            for_terminal,
            structlog.dev.ConsoleRenderer(colors=False),
        ],
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _warnings_only(logger: Any, method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Drops lines below the level WARNING. A structlog processor."""
    if method in ("debug", "info"):
        raise structlog.DropEvent
    return line


def configure(settings: Settings, stream: IO[str] | None = None) -> None:
    """Configures structlog and standard logging, once per process. Output goes to standard error."""
    stream = stream or sys.stderr
    json_lines = as_json(settings, stream)
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    common: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        redact,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *common,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    rendering: list[Any] = (
        [structlog.processors.JSONRenderer(_json_line, default=str)]
        if json_lines
        else [for_terminal, structlog.dev.ConsoleRenderer(colors=stream.isatty())]
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.PositionalArgumentsFormatter(), *common],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("google", "urllib3", "clickhouse_connect", "kombu", "amqp", "datadog"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))
