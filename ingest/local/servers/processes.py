"""Starts, watches and stops child processes, and never leaves one behind.

Each child leads its own process group, so that Ctrl-C in the terminal affects only this process, and stopping a
child also stops its descendants. The groups are registered with a watchdog (`ingest/local/servers/watchdog.py`), a
small process that kills them when this process ends, even by SIGKILL. A child is registered before its program
runs: it starts as a shell that waits for a line, which is written after the registration. Therefore no child keeps
running after a `kill -9` of this process.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, BinaryIO, ClassVar, Protocol, Self

WATCHDOG = Path(__file__).with_name("watchdog.py")
WAIT_FOR_LINE_COMMAND = ("/bin/sh", "-c", 'read -r _ && exec "$@" </dev/null', "sh")
LOG_TAIL_BYTES = 4096
POLL_SECONDS = 0.01
# The watchdog removes a stack's data, which may take a long time on a slow disk.
WATCHDOG_SECONDS_MAX = 60.0
HOST = "127.0.0.1"
# Recordings are personal data, so only this user may read files that this process and its children write.
PRIVATE_UMASK = 0o077

# The ports are below the kernel's range of ephemeral ports (32768 and up), so that no outgoing connection takes a
# server's port during a restart.
PORTS = range(15000, 32000)


class LocalError(RuntimeError):
    """Raised if a local process fails. The message names the process and ends with the tail of its log."""


def private_directory(path: Path) -> None:
    """Creates the folder and its missing parents, accessible only to this user.

    Existing folders are not changed.
    """
    for each in reversed((path, *path.parents)):
        if not each.exists():
            each.mkdir(0o777 & ~PRIVATE_UMASK, exist_ok=True)


def private_opener(path: str, flags: int) -> int:
    """Returns an `opener` for `open` that makes a new file accessible only to this user."""
    return os.open(path, flags, 0o666 & ~PRIVATE_UMASK)


@contextlib.contextmanager
def private_file(path: Path) -> Iterator[BinaryIO]:
    """Writes a new file that is accessible only to this user, and moves it to `path` when it is complete.

    An existing file or link is replaced rather than written to, because in a shared folder it may belong to
    another user.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


class Program(Protocol):
    """The interface that `Child` requires of a process, as in `subprocess.Popen`.

    The program starts once a line has been written to `stdin`.
    """

    stdin: IO[bytes] | None
    pid: int

    def poll(self) -> int | None:
        """Returns the exit code, or None while the program is running."""


class Starter(Protocol):
    """Starts a program as the leader of a new process group, with exactly this environment."""

    def __call__(
        self, command: Sequence[str], output: IO[bytes], environment: Mapping[str, str], folder: Path | None
    ) -> Program: ...


def start_program(
    command: Sequence[str], output: IO[bytes], environment: Mapping[str, str], folder: Path | None
) -> Program:
    """Starts a shell as the leader of a new process group. The shell reads one line from its standard input, and
    then executes the command.
    """
    return subprocess.Popen(
        [*WAIT_FOR_LINE_COMMAND, *command],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=folder,
        start_new_session=True,
        umask=PRIVATE_UMASK,
    )


def free_port() -> int:
    """Returns a port on the loopback address that is free for TCP and UDP."""
    for _ in range(1000):
        port = random.choice(PORTS)
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram,
        ):
            try:
                stream.bind((HOST, port))
                datagram.bind((HOST, port))
            except OSError:
                continue
            return port
    raise LocalError(f"no free port in {PORTS}")


def is_listening(port: int, host: str = HOST) -> bool:
    """Returns whether a process accepts TCP connections on this port."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], deadline_seconds: float, what: str) -> None:
    """Waits until `condition()` is true. After the deadline, raises LocalError with the text `what`."""
    end = time.monotonic() + deadline_seconds
    while not condition():
        if time.monotonic() > end:
            raise LocalError(f"waited {deadline_seconds:g} s for {what}")
        time.sleep(POLL_SECONDS)


def group_is_alive(group: int) -> bool:
    """Returns whether any process of this group exists, including unreaped zombies."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Child:
    """A program that may run several times in succession."""

    def __init__(
        self,
        owner: Children,
        name: str,
        command: Sequence[str],
        log_path: Path,
        env: Mapping[str, str],
        cwd: Path | None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log_path = log_path
        self.env = dict(env)
        self.cwd = cwd
        self.starts = 0
        self._owner = owner
        self._process: Program | None = None
        self._swept = False
        self._lock = threading.RLock()

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its process group."""
        assert self._process is not None, self.name
        return self._process.pid

    @property
    def alive(self) -> bool:
        """True while the main process is running."""
        return self._process is not None and self.poll() is None

    @property
    def returncode(self) -> int | None:
        """The exit code, or minus the number of the signal that ended the process. None while the process runs."""
        return self.poll()

    def start(self) -> None:
        """Runs the program unless it is already running."""
        with self._lock:
            if self.alive:
                return
            private_directory(self.log_path.parent)
            with open(self.log_path, "ab", opener=private_opener) as log:
                process = self._owner.start_program(self.command, log, {**os.environ, **self.env}, self.cwd)
            self._owner.watch(process.pid)
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(b"go\n")
            self._process, self._swept = process, False
            self.starts += 1

    def poll(self) -> int | None:
        """Returns the exit code, or None while the program is running.

        After the main process has ended, kills the remaining processes of its group.
        """
        with self._lock:
            if self._process is None:
                return None
            code = self._process.poll()
            if code is not None and not self._swept:
                self._swept = True
                self._sweep()
            return code

    def wait(self, deadline_seconds: float) -> int:
        """Waits for the exit code. Raises LocalError if the program is still running at the deadline."""
        try:
            wait_until(lambda: self.poll() is not None, deadline_seconds, f"{self.name} to end")
        except LocalError as error:
            raise LocalError(f"{error}\n{self.log_tail()}") from None
        code = self.poll()
        assert code is not None
        return code

    def signal(self, number: int, *, group: bool = False) -> None:
        """Sends a signal to the main process or to the whole group. Does nothing if the process has ended."""
        if self._process is None or self._process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)

    def stop(self, grace_seconds: float = 10.0) -> int | None:
        """Sends SIGTERM to the main process, and SIGKILL to the group after `grace_seconds`.

        Returns the exit code.
        """
        if self._process is None:
            return None
        self.signal(signal.SIGCONT, group=True)
        self.signal(signal.SIGTERM)
        try:
            return self.wait(grace_seconds)
        except LocalError:
            return self.kill()

    def kill(self, *, group: bool = True) -> int | None:
        """Sends SIGKILL and waits for the process to exit.

        If `group` is false, only the main process gets the signal, as when the kernel kills one process. The
        children of the main process are killed once the main process is reaped.
        """
        with self._lock:  # `keep` must not start the next process before the current one has ended
            if self._process is None:
                return None
            self.signal(signal.SIGKILL, group=group)
            return self.wait(10)

    def pause(self) -> None:
        """Sends SIGSTOP to the group, which suspends it."""
        self.signal(signal.SIGSTOP, group=True)

    def resume(self) -> None:
        """Sends SIGCONT to the group."""
        self.signal(signal.SIGCONT, group=True)

    def log_tail(self) -> str:
        """Returns the last lines of the log."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, self.log_path.stat().st_size - LOG_TAIL_BYTES))
                text = log.read().decode("utf-8", "replace").strip()
        except OSError:
            text = ""
        return f"--- end of {self.log_path}\n{text or '(empty)'}"

    def _sweep(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._owner.forget(self._process.pid)


class Children:
    """All children of this process. Leaving the context stops the children in reverse order of their start.

    The children are also killed if this process is killed; see the module docstring. `start_program` is the
    function that starts a process.
    """

    start_program: ClassVar[Starter] = staticmethod(start_program)

    def __init__(self, log_directory: Path) -> None:
        self.log_directory = log_directory
        self._children: list[Child] = []
        self._restarted: dict[str, Child] = {}
        self._lock = threading.Lock()
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._keeper: threading.Thread | None = None
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Child]:
        return iter(tuple(self._children))

    def add(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Child:
        """Adds a child without running it. The output of the child goes to `<log_directory>/<name>.log`."""
        child = Child(self, name, command, self.log_directory / f"{name}.log", env or {}, cwd)
        with self._lock:
            self._children.append(child)
        return child

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        keep: bool = False,
    ) -> Child:
        """Adds a child and runs it. With `keep`, the child is restarted whenever it exits on its own."""
        child = self.add(name, command, env=env, cwd=cwd)
        child.start()
        if keep:
            self.keep(child)
        return child

    def keep(self, child: Child, wait_seconds: float = 0.5) -> None:
        """Restarts the child when it exits, at most once every `wait_seconds`, until `release` or `close` is
        called.
        """
        with self._lock:
            self._restarted[child.name] = child
            if self._keeper is None:
                self._keeper = threading.Thread(
                    target=self._keep_running, args=(wait_seconds,), name="keeper", daemon=True
                )
                self._keeper.start()

    def release(self, child: Child) -> None:
        """Stops restarting the child."""
        with self._lock:
            self._restarted.pop(child.name, None)

    def close(self, grace_seconds: float = 10.0) -> None:
        """Stops all children in reverse order, then the watchdog. May be called twice."""
        self._closed.set()
        if self._keeper is not None:
            self._keeper.join(5)
        with self._lock:
            children = list(reversed(self._children))
            self._restarted.clear()
        for child in children:
            child.stop(grace_seconds)
        with self._lock:
            watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            assert watchdog.stdin is not None
            watchdog.stdin.close()
            watchdog.wait(WATCHDOG_SECONDS_MAX)

    def remove_at_end(self, directory: Path) -> None:
        """Registers this temporary directory for removal when this process ends, even if it is killed."""
        self._send_order(f"*{directory}")

    def watch(self, group: int) -> None:
        """Registers a process group with the watchdog."""
        self._send_order(f"+{group}")

    def forget(self, group: int) -> None:
        """Unregisters a process group that has ended."""
        with self._lock:
            if self._watchdog is None:
                return
        self._send_order(f"-{group}")

    def _send_order(self, line: str) -> None:
        with self._lock:
            if self._watchdog is None:
                self._watchdog = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(WATCHDOG), str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                )
            assert self._watchdog.stdin is not None
            # Lines are far shorter than PIPE_BUF, so they are written atomically, and the watchdog reads them even
            # if this process dies.
            self._watchdog.stdin.write(line.encode("utf-8", "surrogateescape") + b"\n")
            self._watchdog.stdin.flush()

    def _keep_running(self, wait_seconds: float) -> None:
        while not self._closed.wait(wait_seconds):
            with self._lock:
                kept = list(self._restarted.values())
            for child in kept:
                if not child.alive and not self._closed.is_set():
                    child.start()


@contextlib.contextmanager
def ending_on_signals(*numbers: int) -> Iterator[threading.Event]:
    """Returns an event that SIGTERM and SIGINT (or `numbers`) set, instead of ending the process.

    Main thread only.
    """
    event = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        event.set()

    chosen = numbers or (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, handle) for number in chosen}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
