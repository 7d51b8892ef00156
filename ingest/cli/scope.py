"""Options that select a part of the topic: offsets of one partition, or a time window."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ingest.cli import ranges
from ingest.operate.text import age_seconds, parse_time

F = TypeVar("F", bound=Callable[..., Any])


class TimeType(click.ParamType[float]):
    """An age like 2h or a time in ISO 8601, converted to Unix seconds."""

    name = "AGE|TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Fails with a usage error."""
        if isinstance(value, float):
            return value
        try:
            return parse_time(str(value), time.time())
        except ValueError as error:
            self.fail(str(error), param, ctx)


class DurationType(click.ParamType[float]):
    """A duration like 90s or 2h, converted to seconds."""

    name = "AGE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Fails with a usage error."""
        if isinstance(value, float):
            return value
        try:
            return float(age_seconds(str(value)))
        except ValueError as error:
            self.fail(str(error), param, ctx)


since_option = click.option(
    "--since", type=TimeType(), help="Start of the window: an age (90s, 30m, 2h, 3d) or a time in ISO 8601, UTC."
)
until_option = click.option("--until", type=TimeType(), help="End of the window, in the same formats as --since.")


def scope_options(command: F) -> F:
    """Adds `partition`, `start`, `stop`, `since` and `until`, the fields of a Scope."""
    for option in (
        until_option,
        since_option,
        click.option("--stop", type=ranges.offset, help="End offset (exclusive); requires --partition."),
        click.option("--start", type=ranges.offset, help="First offset; requires --partition."),
        click.option("--partition", type=ranges.partition, help="Only this partition; default: all partitions."),
    ):
        command = option(command)
    return command
