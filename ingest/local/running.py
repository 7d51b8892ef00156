"""Finds the addresses of a running background stack, for commands without configured servers.

The module imports no server, so that it can be imported where the extra `local` is not installed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ingest.local.places import directory_of, is_locked
from ingest.local.servers.processes import LocalError


@dataclass(frozen=True, slots=True)
class RunningStack:
    """A running stack, with its directory and the REPLAYS_* variables for its servers."""

    directory: Path
    settings: Mapping[str, str]


def running_stack() -> RunningStack | None:
    """Returns the stack that `local status` shows: the stack of the current folder or, if it has none, the stack
    that was most recently started elsewhere.

    Returns None if no stack is running, or if its files cannot be trusted or are incomplete.
    """
    try:
        place = directory_of(None)
        if not is_locked(place):
            return None
        state = json.loads((place / "state.json").read_text())
        settings = {str(name): str(value) for name, value in state["settings"].items()}
    except (LocalError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return RunningStack(place, settings) if settings and not state.get("error") else None
