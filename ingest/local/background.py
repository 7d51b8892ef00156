"""An embedded stack in the background, for development: `replays-ingest local up`, `down` and `status`.

A supervisor of its own holds a lock in the stack's directory, starts again what dies, and keeps a state file there
with addresses and settings.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ingest.local.servers.processes import (
    PRIVATE_UMASK,
    LocalError,
    ending_on_signals,
    private_folder,
    private_opener,
    wait_until,
)
from ingest.local.stack import PARTS, KafkaKind, Part, Progress, Stack

DIRECTORY_VARIABLE = "REPLAYS_LOCAL_DIRECTORY"
UP_SECONDS_MAX = 90.0
DOWN_SECONDS_MAX = 30.0


@dataclass(frozen=True, slots=True)
class StackState:
    """A stack in the background, as its state file tells. `error` is set if it did not come up."""

    directory: str
    pid: int
    parts: tuple[Part, ...]
    addresses: Mapping[str, str]
    settings: Mapping[str, str]
    error: str = ""

    def to_json(self) -> str:
        """For scripts."""
        return json.dumps(asdict(self), indent=2)

    def exports(self) -> str:
        """Lines for a shell."""
        return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in sorted(self.settings.items()))


def default_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """REPLAYS_LOCAL_DIRECTORY, else .local/stack in a checkout, else the user's state directory."""
    if environ.get(DIRECTORY_VARIABLE):
        return Path(environ[DIRECTORY_VARIABLE])
    if Path("pyproject.toml").exists() and Path("celeryconfig.py").exists():
        return Path(".local/stack").absolute()
    state = environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "replays-ingest" / "stack"


def up(
    directory: Path | None = None,
    *,
    parts: Sequence[str] = PARTS,
    kafka: KafkaKind = "tansu",
    progress: Progress = lambda line: None,
) -> StackState:
    """Starts a stack that outlives us, and returns when all of it answers. One that runs already is returned.

    Raises LocalError if a part does not come up; then nothing is left running.
    """
    place = (directory or default_directory()).absolute()
    running = status(place)
    if running is not None:
        progress("already up")
        return running
    private_folder(place)
    if (place / "lock").exists():
        place.chmod(0o700)  # made by a release that left it open
    _state_path(place).unlink(missing_ok=True)
    with open(place / "supervisor.log", "wb", opener=private_opener) as log:
        supervisor = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "ingest.local.background",
                str(place),
                "--kafka",
                kafka,
                "--parts",
                ",".join(parts),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=PRIVATE_UMASK,
        )
    told = 0

    def decided() -> bool:
        nonlocal told
        lines = (place / "supervisor.log").read_text("utf-8", "replace").splitlines()
        for line in lines[told:]:
            progress(line)
        told = len(lines)
        return _read_state(place) is not None or supervisor.poll() is not None

    try:
        wait_until(decided, UP_SECONDS_MAX, "the stack to come up")
    except (LocalError, KeyboardInterrupt):
        supervisor.terminate()
        raise
    state = _read_state(place)
    if state is None or state.error:
        reason = state.error if state is not None else (place / "supervisor.log").read_text("utf-8", "replace")
        raise LocalError(f"the stack did not come up: {reason}")
    return state


def down(directory: Path | None = None) -> bool:
    """Stops the stack of this directory and waits until it is gone; its data stays. False if none runs."""
    place = (directory or default_directory()).absolute()
    state = status(place)
    if state is None:
        return False
    os.kill(state.pid, signal.SIGTERM)
    try:
        wait_until(lambda: not _is_locked(place), DOWN_SECONDS_MAX, "the stack to stop")
    except LocalError:
        # Its warden takes the servers along.
        os.kill(state.pid, signal.SIGKILL)
        wait_until(lambda: not _is_locked(place), DOWN_SECONDS_MAX, "the killed stack to go")
    _state_path(place).unlink(missing_ok=True)
    return True


def status(directory: Path | None = None) -> StackState | None:
    """The stack of this directory if one runs. A state file without a supervisor is of the past."""
    place = (directory or default_directory()).absolute()
    return _read_state(place) if _is_locked(place) else None


def supervise(directory: Path, parts: Sequence[str], kafka: KafkaKind) -> int:
    """What the background process does: hold the lock, run the parts, start again what dies, until SIGTERM."""
    with (directory / "lock").open("w") as lock, ending_on_signals() as ending:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another supervisor holds the lock", flush=True)
            return 1
        # The addresses of last time, so that what a shell has exported stays true.
        memory = directory / "ports.json"
        ports = json.loads(memory.read_text()) if memory.exists() else {}
        with Stack(directory, kafka=kafka, progress=lambda line: print(line, flush=True), ports=ports) as stack:
            try:
                stack.start(parts)
                ports |= {name: server.port for name, server in stack.servers.items()}
                memory.write_text(json.dumps(ports))
            except LocalError as error:
                _write_state(directory, StackState(str(directory), os.getpid(), (), {}, {}, error=str(error)))
                return 1
            for server in stack.servers.values():
                stack.children.keep(server.child)
            seen: tuple[Part, ...] = ()
            while not ending.wait(0.5):
                now = tuple(stack.parts.values())
                if now != seen:
                    seen = now
                    state = StackState(str(directory), os.getpid(), now, stack.addresses, stack.settings())
                    _write_state(directory, state)
    return 0


def _state_path(directory: Path) -> Path:
    return directory / "state.json"


def _write_state(directory: Path, state: StackState) -> None:
    """Whole or not at all."""
    draft = directory / "state.json.new"
    draft.write_text(state.to_json())
    draft.replace(_state_path(directory))


def _read_state(directory: Path) -> StackState | None:
    try:
        found: dict[str, Any] = json.loads(_state_path(directory).read_text())
    except (OSError, ValueError):
        return None
    return StackState(**{**found, "parts": tuple(Part(**part) for part in found["parts"])})


def _is_locked(directory: Path) -> bool:
    """Whether a supervisor lives: the kernel gives its lock back however it ends."""
    with contextlib.suppress(FileNotFoundError), (directory / "lock").open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def main() -> int:
    """python -m ingest.local.background DIRECTORY: the supervisor that `up` starts."""
    parser = argparse.ArgumentParser(description="Supervises an embedded stack until SIGTERM.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS), help="which, comma separated")
    parser.add_argument("--kafka", choices=("tansu", "apache"), default="tansu")
    arguments = parser.parse_args()
    parts = [name for name in arguments.parts.split(",") if name]
    return supervise(arguments.directory, parts, arguments.kafka)


if __name__ == "__main__":
    raise SystemExit(main())
