"""Runs this project's programs in forks of processes that have already imported the programs' modules, so that a
start takes milliseconds.

A forked program is equivalent to one that `Child` starts (ingest/local/servers/processes.py): it has its own
process group, environment, directory, streams and exit code, and runs the same module with the same arguments.
There is one parent process for each kind of program, so that a reader, for example, has no library loaded that it
would not load if started normally. A program is started normally if it is not in MODULES_BY_KIND, or if its
environment changes the interpreter.

    python -m tests.kit.prestarted KIND    a parent process; its standard input is the control socket
    python -m tests.kit.prestarted SOCKETS MODULE WORDS    a program whose own children are forked, too
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ingest.local.servers.processes import POLL_SECONDS, PRIVATE_UMASK, Children, Program, start_program
from tests.kit.paths import ROOT

# The modules that each kind of program always imports. None of these modules reads a setting on import.
WORKER = (
    *("celery.apps.worker", "celery.backends.redis", "celery.bin.celery", "celery.concurrency.prefork"),
    *("flower.command", "kombu.transport.redis", "tasks.celery", "tasks.control", "tasks.flush"),
    *("tasks.sinks.bigquery.sink", "tasks.sinks.clickhouse.sink", "tasks.sinks.dead_letter.sink"),
    *("tasks.sinks.datadog", "tasks.sinks.gcs.sink"),
)
READER = "ingest.cli"
COMMAND = "ingest.cli COMMAND"
MODULES_BY_KIND = {
    "celery": WORKER,
    COMMAND: (
        *("ingest.operate.check", "ingest.operate.reconcile", "ingest.operate.status", "ingest.operate.top"),
        *("celery.backends.redis", "flower.command", "ingest.cli.main", "ingest.web.server"),
        *("kombu.transport.redis", "tasks.celery", "tasks.flower.start", "tasks.sinks.datadog"),
    ),
    READER: ("celery.backends.redis", "ingest.cli.main", "ingest.reader.process", "kombu.transport.redis"),
    "ingest.local.servers.bigquery": ("ingest.local.servers.bigquery.service",),
    # chdb is not in the list, because it starts threads on import.
    "ingest.local.servers.clickhouse": ("ingest.local.servers.base", "ingest.local.servers.confinement"),
    "ingest.local.servers.statsd": ("ingest.local.servers.base",),
}
SCRIPTS = {"replays-ingest": READER}
# The variables that change how the interpreter starts.
INTERPRETER = ("COVERAGE", "LD_", "MALLOC_", "PYTHON")
ORDER_BYTES_MAX = 1 << 20
FORK_SECONDS_MAX = 60.0
START_LINE = b"go\n"


def kind_of(command: Sequence[str]) -> tuple[str, list[str]] | None:
    """Returns the kind of program that a command starts, if the kind is in MODULES_BY_KIND, and the program's
    arguments."""
    program = Path(command[0])
    if program.parent == Path(sys.executable).parent and program.name in SCRIPTS:
        module, words = SCRIPTS[program.name], list(command[1:])
    elif command[0] == sys.executable and command[1:2] == ["-m"]:
        module, words = command[2], list(command[3:])
    else:
        return None
    kind = COMMAND if module == READER and words else module
    return (kind, words) if kind in MODULES_BY_KIND else None


class Parents:
    """The parent processes that fork the programs started by this process. Each parent is started when it is first
    needed.
    """

    def __init__(self) -> None:
        self._controls: dict[str, socket.socket] = {}
        self._lock = threading.Lock()

    def start(
        self,
        command: Sequence[str],
        output: IO[bytes],
        environment: Mapping[str, str],
        folder: Path | None,
        errors: IO[bytes] | None = None,
    ) -> Program:
        """Forks a program, or calls `start_program` if it cannot be forked."""
        found = kind_of(command)
        if found is None or _interpreter(environment) != _interpreter(os.environ):
            return start_program(command, output, environment, folder)
        kind, words = found
        order = [words, dict(environment), str(folder or Path.cwd())]
        gate, go = os.pipe()
        status_read, status_write = os.pipe()
        fds = [gate, status_write, output.fileno(), (errors or output).fileno()]
        with self._lock:
            socket.send_fds(self._control(kind), [json.dumps(order).encode()], fds)
        os.close(gate)
        os.close(status_write)
        return Fork(status_read, os.fdopen(go, "wb", buffering=0))

    def prepare(self, *kinds: str) -> None:
        """Starts the parent processes for these kinds of programs, without waiting until the parent processes have
        imported their modules."""
        with self._lock:
            for kind in kinds:
                self._control(kind)

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path | None = None,
        seconds_max: float = 60.0,
    ) -> ProgramResult:
        """Starts a program, waits until the program exits, and returns its output."""
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            program = self.start(command, output, environment, folder, errors)
            assert program.stdin is not None
            with program.stdin as word:
                word.write(START_LINE)
            ended_by = time.monotonic() + seconds_max
            while (code := program.poll()) is None:
                if time.monotonic() > ended_by:
                    os.killpg(program.pid, signal.SIGKILL)
                    raise TimeoutError(f"{command} still ran after {seconds_max:g} s")
                time.sleep(POLL_SECONDS)
            texts = [(each.seek(0), each.read().decode())[1] for each in (output, errors)]
        return ProgramResult(code, *texts)

    def share_with(self, module: str, *words: str) -> tuple[list[str], tuple[int, ...]]:
        """Returns a command that runs the module, and the sockets that the command's process must inherit.
        Programs that the module starts are forked from the existing parent processes, so the command starts no
        parent processes of its own.
        """
        self.prepare(*MODULES_BY_KIND)
        numbers = {kind: control.fileno() for kind, control in self._controls.items()}
        return [sys.executable, "-m", __name__, json.dumps(numbers), module, *words], tuple(numbers.values())

    def use_shared(self, numbers: Mapping[str, int]) -> None:
        """Uses the parent processes whose sockets `share_with` has passed to this process."""
        self._controls = {kind: socket.socket(fileno=number) for kind, number in numbers.items()}

    def close(self) -> None:
        """Ends the parent processes, but not the programs that were forked from them."""
        for control in self._controls.values():
            control.close()
        self._controls.clear()

    def _control(self, kind: str) -> socket.socket:
        if kind not in self._controls:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ORDER_BYTES_MAX)
            kept = {name: value for name, value in os.environ.items() if not name.startswith("REPLAYS_")}
            subprocess.Popen([sys.executable, "-m", __name__, kind], cwd=ROOT, env=kept, stdin=theirs.fileno())
            theirs.close()
            self._controls[kind] = ours
        return self._controls[kind]


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """The exit code and the output of a program."""

    exit_code: int
    stdout: str
    stderr: str


PARENTS = Parents()


class Fork:
    """A forked process, with the interface that `Child` uses (`Program`).

    The process waits for a line on `stdin` before it runs its program.
    """

    def __init__(self, status_read: int, stdin: IO[bytes]) -> None:
        self.stdin: IO[bytes] | None = stdin
        self._status = os.fdopen(status_read, "rb", buffering=0)
        self._code: int | None = None
        self.pid = int(self._line(FORK_SECONDS_MAX) or -1)
        if self.pid < 0:
            raise OSError("the parent of forks ended: look for its errors among those of this process")

    def poll(self) -> int | None:
        """Returns the exit code if the forked process has exited, otherwise None, like `subprocess.Popen.poll`."""
        if self._code is None:
            line = self._line(0)
            if line is not None:
                self._code = int(line or -signal.SIGKILL)
                self._status.close()
        return self._code

    def _line(self, seconds: float) -> bytes | None:
        readable, _, _ = select.select([self._status], [], [], seconds)
        return self._status.readline() if readable else None


@dataclass(frozen=True, slots=True)
class Order:
    """A request to fork: the program's arguments, environment and directory, and the file descriptors for the
    forked process."""

    words: list[str]
    environment: dict[str, str]
    folder: str
    gate: int
    status_write: int
    output: int
    errors: int


def serve(kind: str, control: socket.socket) -> Order | None:
    """Forks once per request that arrives on `control`, and reports how each forked process ended.

    Returns the request in a forked process, and None in the parent once `control` has been closed.
    """
    for name in MODULES_BY_KIND[kind]:
        importlib.import_module(name)
    tempfile.tempdir = None
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    running: dict[int, int] = {}
    while True:
        readable, _, _ = select.select([woken, control], [], [])
        if woken in readable:
            woken.recv(4096)
            _report(running)
        if control not in readable:
            continue
        message, fds, _, _ = socket.recv_fds(control, ORDER_BYTES_MAX, 4)
        if not message:
            return None
        order = Order(*json.loads(message), *fds)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for each in (woken, wake, control):
                each.close()
            for fd in running.values():
                os.close(fd)
            return order
        running[pid] = order.status_write
        _write(order.status_write, pid)
        for fd in (order.gate, order.output, order.errors):
            os.close(fd)


def _report(running: dict[int, int]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        status_write = running.pop(pid)
        _write(status_write, os.waitstatus_to_exitcode(status))
        os.close(status_write)


def _write(status_write: int, number: int) -> None:
    with suppress(BrokenPipeError):
        os.write(status_write, b"%d\n" % number)


def set_up_fork(order: Order) -> None:
    """Sets up the process group, directory, environment and streams of a forked process, and waits for the start
    line."""
    os.close(order.status_write)
    os.setsid()
    os.umask(PRIVATE_UMASK)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, fd in ((0, nothing), (1, order.output), (2, order.errors)):
        os.dup2(fd, number)
    for fd in {nothing, order.output, order.errors}:
        os.close(fd)
    if os.read(order.gate, len(START_LINE)) != START_LINE:
        os._exit(1)
    os.close(order.gate)
    os.chdir(order.folder)
    os.environ.clear()
    os.environ.update(order.environment)
    time.tzset()


def _interpreter(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(INTERPRETER)}


def main() -> None:
    """Runs a parent process until its control socket is closed. In a process forked from the parent process, runs
    the requested program and exits with the program's exit code."""
    kind = sys.argv[1]
    if kind not in MODULES_BY_KIND:
        PARENTS.use_shared(json.loads(kind))
        Children.start_program = staticmethod(PARENTS.start)
        sys.argv = sys.argv[2:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        return
    control = socket.socket(fileno=os.dup(0))
    order = serve(kind, control)
    if order is not None:
        set_up_fork(order)
        module = kind.split()[0]
        sys.argv = [module, *order.words]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
