"""Runs an embedded stack in the background, for development: `replays-ingest local up`, `down`, `status` and
`logs`.

A supervisor process holds a lock in the stack's directory, restarts processes that die, and writes addresses and
settings to a state file there. With `programs`, the supervisor also runs the worker, the reader, Flower and the
web pages.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ingest.local.places import directory_of, is_locked, record_running_stack
from ingest.local.programs import LOGIN_VARIABLE, MIGRATE_SECONDS_MAX, Programs, login_of
from ingest.local.servers.processes import (
    PRIVATE_UMASK,
    LocalError,
    ending_on_signals,
    private_directory,
    private_opener,
    wait_until,
)
from ingest.local.stack import PARTS, KafkaKind, Part, Progress, Stack

UP_SECONDS_MAX = 90.0 + MIGRATE_SECONDS_MAX
PROGRAMS_SECONDS_MAX = 120.0
DOWN_SECONDS_MAX = 60.0
POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class StackState:
    """The content of a background stack's state file. `error` is set if a component failed to start."""

    directory: str
    pid: int
    parts: tuple[Part, ...]
    addresses: Mapping[str, str]
    settings: Mapping[str, str]
    error: str = ""
    pages: Mapping[str, str] = field(default_factory=dict)
    """Addresses of web interfaces, by name; empty if only the servers run."""

    def to_json(self) -> str:
        """Returns the state as JSON, for scripts."""
        return json.dumps(asdict(self), indent=2)

    def exports(self) -> str:
        """Returns `export` lines for a shell."""
        return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in sorted(self.settings.items()))


def start_stack(
    directory: Path | None = None,
    *,
    parts: Sequence[str] = PARTS,
    kafka: KafkaKind = "tansu",
    programs: bool = False,
    progress: Progress = lambda line: None,
) -> StackState:
    """Starts a stack that continues to run after this process ends, and returns when all components are ready.

    If a stack is running, returns that stack unchanged. If a new stack has started all servers itself, also
    creates the tables, the bucket and the topics.

    With `programs`, also starts the worker, the reader, Flower and the web pages, even if the stack is already
    running. If a component fails to start, stops everything that this call started and raises LocalError.
    """
    place = directory_of(directory)
    running = status(place)
    if running is not None:
        progress(f"already up in {place}")
        return _add_programs(place, progress) if programs and not running.pages else running
    private_directory(place)
    if (place / "lock").exists():
        place.chmod(0o700)  # older releases created the directory with wider permissions
    _state_path(place).unlink(missing_ok=True)
    _request_path(place).unlink(missing_ok=True)
    with open(place / "supervisor.log", "wb", opener=private_opener) as log:
        command = [sys.executable, "-m", "ingest.local.background", str(place)]
        supervisor = subprocess.Popen(
            [*command, "--kafka", kafka, "--parts", ",".join(parts)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=PRIVATE_UMASK,
        )
    lines = _Lines(place / "supervisor.log", progress)

    def has_outcome() -> bool:
        lines.print_new()
        return _read_state(place) is not None or supervisor.poll() is not None

    try:
        wait_until(has_outcome, UP_SECONDS_MAX, "the stack to come up")
    except (LocalError, KeyboardInterrupt):
        supervisor.terminate()
        raise
    state = _read_state(place)
    if state is None or state.error:
        reason = state.error if state is not None else (place / "supervisor.log").read_text("utf-8", "replace")
        raise LocalError(f"the stack did not come up: {reason}")
    record_running_stack(place)
    if not programs:
        return state
    try:
        return _add_programs(place, progress)
    except (LocalError, KeyboardInterrupt):
        stop_stack(place)
        raise


def _add_programs(place: Path, progress: Progress) -> StackState:
    """Asks the supervisor, through a file, to start the programs, and waits for the response."""
    lines = _Lines(place / "supervisor.log", progress, skip=True)
    _request_path(place).touch(0o600)

    def has_outcome() -> bool:
        lines.print_new()
        return not _request_path(place).exists() or not is_locked(place)

    wait_until(has_outcome, PROGRAMS_SECONDS_MAX, "worker, reader, Flower and web pages to come up")
    state = status(place)
    if state is None or not state.pages:
        raise LocalError(f"the programs did not come up: {state.error if state else 'the stack ended'}")
    return state


class _Lines:
    """Prints the lines that the supervisor has written since the last call.

    If `skip` is true, the lines written so far are skipped.
    """

    def __init__(self, log: Path, progress: Progress, *, skip: bool = False) -> None:
        self._log = log
        self._progress = progress
        self._printed = len(self._read()) if skip else 0

    def print_new(self) -> None:
        """Prints new lines."""
        found = self._read()
        for line in found[self._printed :]:
            self._progress(line)
        self._printed = len(found)

    def _read(self) -> list[str]:
        return self._log.read_text("utf-8", "replace").splitlines()


def stop_stack(directory: Path | None = None) -> Path | None:
    """Stops the running stack and returns its directory, which keeps the data.

    Returns None if no stack is running.
    """
    place = directory_of(directory)
    state = status(place)
    if state is None:
        return None
    os.kill(state.pid, signal.SIGTERM)
    try:
        wait_until(lambda: not is_locked(place), DOWN_SECONDS_MAX, "the stack to stop")
    except LocalError:
        # When the supervisor dies, its watchdog kills the servers.
        os.kill(state.pid, signal.SIGKILL)
        wait_until(lambda: not is_locked(place), DOWN_SECONDS_MAX, "the killed stack to end")
    _state_path(place).unlink(missing_ok=True)
    return place


def status(directory: Path | None = None) -> StackState | None:
    """Returns the running stack of this directory, or None.

    A state file whose supervisor is not running is stale and ignored.
    """
    place = directory_of(directory)
    return _read_state(place) if is_locked(place) else None


def log_files(directory: Path | None = None) -> dict[str, Path]:
    """Returns the logs of the stack's processes by name, even if the stack has stopped."""
    place = directory_of(directory)
    return {path.stem: path for path in sorted((place / "logs").glob("*.log"))}


def supervise(directory: Path, parts: Sequence[str], kafka: KafkaKind) -> int:
    """The main function of the background process, which holds the lock, and runs and restarts the components
    until SIGTERM.
    """
    with (directory / "lock").open("w") as lock, ending_on_signals() as ending:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another supervisor holds the lock", flush=True)
            return 1
        # Reuse the previous addresses, so that variables exported in a shell stay valid.
        memory = directory / "ports.json"
        ports: dict[str, int] = json.loads(memory.read_text()) if memory.exists() else {}
        with Stack(directory, kafka=kafka, progress=_print, ports=ports) as stack:
            try:
                stack.start(parts)
                settings = {**stack.settings(), LOGIN_VARIABLE: login_of(directory)}
                programs = Programs(stack, settings, ports, progress=_print, ending=ending.is_set)
                if stack.servers.keys() >= set(PARTS):  # existing servers are changed only with `--all`
                    programs.migrate()
            except LocalError as error:
                _write_state(directory, StackState(str(directory), os.getpid(), (), {}, {}, error=str(error)))
                return 1
            ports |= {name: server.port for name, server in stack.servers.items()}
            memory.write_text(json.dumps(ports))
            for server in stack.servers.values():
                stack.children.keep(server.child)
            _Supervisor(directory, stack, settings, programs).run(ending.wait)
            memory.write_text(json.dumps(ports))
    return 0


class _Supervisor:
    """Keeps the state file current, and starts the programs when `start_stack` requests them."""

    def __init__(self, directory: Path, stack: Stack, settings: Mapping[str, str], programs: Programs) -> None:
        self._directory = directory
        self._stack = stack
        self._settings = settings
        self._programs = programs
        self._error = ""

    def run(self, wait: Callable[[float], bool]) -> None:
        """Supervises the stack until `wait` returns true."""
        seen: StackState | None = None
        while True:
            if (now := self._state()) != seen:
                seen = now
                _write_state(self._directory, now)
            if wait(POLL_SECONDS):
                break
            if _request_path(self._directory).exists():
                self._start_programs()
        self._programs.stop()

    def _start_programs(self) -> None:
        self._error = ""
        try:
            self._programs.start()
        except LocalError as error:
            self._programs.stop()
            self._error = str(error)
        # Write the response before removing the request, so that a waiting client reads the new state.
        _write_state(self._directory, self._state())
        _request_path(self._directory).unlink(missing_ok=True)

    def _state(self) -> StackState:
        parts = (*self._stack.parts.values(), *self._programs.parts)
        addresses, pages = self._stack.addresses, self._programs.addresses
        return StackState(
            str(self._directory), os.getpid(), parts, addresses, self._settings, self._error, pages=pages
        )


def _print(line: str) -> None:
    print(line, flush=True)


def _state_path(directory: Path) -> Path:
    return directory / "state.json"


def _request_path(directory: Path) -> Path:
    """Returns the path of the request file. The file exists while a client waits for the programs."""
    return directory / "programs.wanted"


def _write_state(directory: Path, state: StackState) -> None:
    """Writes the state file atomically."""
    draft = directory / "state.json.new"
    draft.write_text(state.to_json())
    draft.replace(_state_path(directory))


def _read_state(directory: Path) -> StackState | None:
    try:
        found: dict[str, Any] = json.loads(_state_path(directory).read_text())
    except (OSError, ValueError):
        return None
    return StackState(**{**found, "parts": tuple(Part(**part) for part in found["parts"])})


def main() -> int:
    """Entry point of the supervisor: `start_stack` runs `python -m ingest.local.background DIRECTORY`."""
    parser = argparse.ArgumentParser(description="Supervises an embedded stack until SIGTERM.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS), help="components to start, comma-separated")
    parser.add_argument("--kafka", choices=("tansu", "apache"), default="tansu")
    arguments = parser.parse_args()
    parts = [name for name in arguments.parts.split(",") if name]
    return supervise(arguments.directory, parts, arguments.kafka)


if __name__ == "__main__":
    raise SystemExit(main())
