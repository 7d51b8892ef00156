"""What commands share: settings or exit code 2, one line and exit code 1, `--json`, `--by`, Redis that is away.

What commands print goes through `echo`, `echo_json`, `fail` or a Terminal: text from outside is never printed raw.
"""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import metadata
from typing import Any, NoReturn

import click
from packaging.requirements import Requirement
from redis.exceptions import RedisError

from ingest.settings import Settings, load
from tasks.connection import connect
from tasks.coordination import Coordination
from tasks.kafka.options import producer_options
from tasks.printed import ascii_json, printable, without_secrets

PACKAGE = "replays-ingest"
EXIT_FAILED = 1

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines instead of text.")
by_option = click.option(
    "--by", default=getpass.getuser, show_default="your login", help="Who did it, for the audit."
)


def echo(line: object, *, err: bool = False) -> None:
    """Prints one line, whatever is in it."""
    click.echo(printable(str(line)), err=err)


def echo_json(value: Any) -> None:
    """Prints JSON values as one line of printable ASCII."""
    click.echo(ascii_json(value))


def fail(text: str) -> NoReturn:
    """Says on one line of standard error why nothing was done, and exits with 1."""
    echo(f"replays-ingest: {without_secrets(text)}", err=True)
    sys.exit(EXIT_FAILED)


def needs_extra(name: str) -> None:
    """Fails with how to install it when packages of our extra `name` are missing, before anything is begun."""
    try:
        requirements = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return  # run from a checkout that nobody installed: an import says what is missing
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
            f"this command needs the extra {name!r}, pip install '{PACKAGE}[{name}]': missing {', '.join(missing)}"
        )


def settings() -> Settings:
    """The settings of this command. Raises SettingsError, which click prints; the exit code is 2 then."""
    context = click.get_current_context().find_root()
    if not isinstance(context.obj, Settings):
        loaded = load()
        _verify_kafka(loaded)
        context.obj = loaded
    return context.obj


def _verify_kafka(loaded: Settings) -> None:
    from tasks.kafka.usable import is_plain, verify_consumer, verify_producer

    if not is_plain(loaded):
        from ingest.reader.configuration import consumer_config

        verify_producer(producer_options(loaded))
        verify_consumer(consumer_config(loaded))


def with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command, which begins by reading its settings: a wrong one is reported before anything is done.

    That includes commands that use none of them: what they start inherits the same environment.
    """

    @wraps(command)
    def checked(*arguments: Any, **options: Any) -> Any:
        settings()
        return command(*arguments, **options)

    return checked


@contextmanager
def redis_answers() -> Iterator[None]:
    """Turns a Redis that does not answer, and decisions that cannot be kept or loaded, into one line."""
    from tasks.kafka.decisions import DecisionsUnreadable
    from tasks.kafka.producing import NotProduced
    from tasks.kafka.ranges import RangeError

    try:
        yield
    except (NotProduced, DecisionsUnreadable, RangeError) as error:
        fail(f"operators' decisions: {error}")
    except RedisError as error:
        fail(f"redis: {error}; is REPLAYS_REDIS_URL right?")


def coordination_of(loaded: Settings) -> Coordination:
    """What readers, workers and operators exchange through Redis."""
    return Coordination(connect(loaded), loaded)
