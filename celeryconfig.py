"""Celery's configuration file. `tasks.configuration` computes the values when Celery asks for the first of them.

Importing this file reads no settings, so an invalid setting cannot make the import fail.
"""

from __future__ import annotations

from typing import Any

from tasks.configuration import current


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # asked for by the import system and by debuggers, not by Celery
        raise AttributeError(name)
    try:
        return current()[name]
    except KeyError:
        raise AttributeError(f"the configuration has no {name}") from None


def __dir__() -> list[str]:
    return list(current())
