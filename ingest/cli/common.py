"""Code shared by commands: loading settings, one-line error messages, `--json`, `--by`, Redis errors.

Commands print through `echo`, `echo_json`, `fail` or a Terminal, which escape untrusted text.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import metadata
from typing import Any, NoReturn, TypeVar

import click
from packaging.requirements import Requirement
from redis.exceptions import RedisError

from ingest.cli.values import OperatorName, login
from ingest.settings import Settings, load
from tasks.connection import connect, fault_of
from tasks.coordination import Coordination
from tasks.kafka.options import is_plain, producer_options
from tasks.printed import ascii_json, printable, without_secrets

T = TypeVar("T")
PACKAGE = "replays-ingest"
EXIT_FAILED = 1
FIRST_STEP = "run `replays-ingest local up --all`"
_ADVICE = re.compile(r"\bcorrect (?:the )?REPLAYS_\S+$")
_NOTHING_CONFIGURED = f"{__name__}.nothing_configured"  # a key of click's `meta`, which all contexts share
# Prefixes of server settings. If any server setting is set, addresses are never taken from a local stack.
SERVER_SETTINGS = ("kafka_", "redis_", "gcs_", "clickhouse_", "bigquery_", "datadog_", "google_")

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
by_option = click.option(
    "--by",
    default=login,
    type=OperatorName(),
    show_default="your login",
    help="Operator name recorded in the audit trail.",
)


def echo(line: object, *, err: bool = False) -> None:
    """Prints one line, with unprintable characters escaped."""
    click.echo(printable(str(line)), err=err)


def echo_json(value: Any) -> None:
    """Prints JSON values as one line of printable ASCII."""
    click.echo(ascii_json(value))


def fail(text: str) -> NoReturn:
    """Prints one line to standard error and exits with 1. Adds FIRST_STEP if no server is configured."""
    echo(f"replays-ingest: {append_first_step(without_secrets(text))}", err=True)
    sys.exit(EXIT_FAILED)


def append_first_step(text: str) -> str:
    """Appends FIRST_STEP to advice on correcting a setting, if all servers have their default addresses."""
    return f"{text}, or {FIRST_STEP}" if nothing_is_configured() and _ADVICE.search(text) else text


def nothing_is_configured() -> bool:
    """Returns True if no server is configured and no local stack is running."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_NOTHING_CONFIGURED))


def needs_extra(name: str) -> None:
    """Fails if packages of the extra `name` are missing; the error names the install command."""
    try:
        requirements = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return  # the package is not installed, so the import itself fails
    missing = []
    for requirement in map(Requirement, requirements):
        if (
            requirement.marker
            and requirement.marker.evaluate({"extra": name})
            and "extra" in str(requirement.marker)
        ):
            try:
                metadata.version(requirement.name)
            except metadata.PackageNotFoundError:
                missing.append(requirement.name)
    if missing:
        fail(
            f"this command requires the extra {name!r}, pip install '{PACKAGE}[{name}]': missing "
            f"{', '.join(missing)}"
        )


def validated_settings() -> Settings:
    """Returns the settings as configured. Raises SettingsError, which click prints with exit code 2."""
    context = click.get_current_context().find_root()
    if not isinstance(context.obj, Settings):
        loaded = load()
        _verify_kafka(loaded)
        context.obj = loaded
    return context.obj


def settings() -> Settings:
    """Returns the settings of a command that uses servers. If no server is configured and a local stack is
    running, the stack's servers are used, and a line on standard error says so. Raises SettingsError.

    The stack's variables are added to the environment, where child processes and Celery find them. Variables that
    are already set are not replaced.
    """
    loaded = validated_settings()
    if any(name.startswith(SERVER_SETTINGS) for name in loaded.model_fields_set):
        return loaded
    from ingest.local.running import running_stack

    stack = running_stack()
    if stack is None:
        click.get_current_context().meta[_NOTHING_CONFIGURED] = True
        return loaded
    for name, value in stack.settings.items():
        os.environ.setdefault(name, value)
    echo(f"replays-ingest: no servers are configured; using the local stack in {stack.directory}", err=True)
    root = click.get_current_context().find_root()
    root.obj = None
    root.obj = loaded = validated_settings().taken_from_local_stack()
    return loaded


def _verify_kafka(loaded: Settings) -> None:
    if not is_plain(loaded):
        from ingest.reader.configuration import consumer_config
        from tasks.kafka.usable import verify_consumer, verify_producer

        verify_producer(producer_options(loaded))
        verify_consumer(consumer_config(loaded))


def with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Makes the command validate all settings before it runs."""

    @wraps(command)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        validated_settings()
        return command(*arguments, **options)

    return wrapper


@contextmanager
def redis_required() -> Iterator[None]:
    """Reports errors of Redis and of the operators' topic on one line, and exits with code 1."""
    from tasks.kafka.decisions import DecisionsUnreadable
    from tasks.kafka.producing import NotProduced
    from tasks.kafka.ranges import RangeError

    try:
        yield
    except (NotProduced, DecisionsUnreadable, RangeError) as error:
        fail(f"operators' topic: {error}")
    except RedisError as error:
        fail(fault_of(error).line)


def none_if_redis_is_unavailable(read: Callable[[], T]) -> T | None:
    """Returns the result of `read`, or None if Redis is unavailable."""
    try:
        return read()
    except RedisError:
        return None


def coordination_of(loaded: Settings) -> Coordination:
    """Returns a client for the state in Redis that readers, workers and operators share."""
    return Coordination(connect(loaded), loaded)
