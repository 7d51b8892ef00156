"""A parser process: answers requests to parse messages, in order, until the reader exits.

Started by `ingest.reader.parsing.inline.Child` as `python -m ingest.reader.parsing.child SOCKET ARENA...`
(file descriptors; one arena for each request that may be outstanding at the same time).
"""

from __future__ import annotations

import math
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path

import msgspec

from ingest.core.parse import ParseRules, UsualLimits
from ingest.reader.parsing.link import EXIT_OUT_OF_MEMORY, Hello, Parser, receive_frame, send_frame


def main(socket_fd: int, *arena_fds: int) -> None:
    """Serves one socket. Ignores SIGINT and SIGTERM; the reader closes the socket to end this process.

    If a message crashes this process (out of memory, a fault in a library), the reader starts another process and
    identifies the message.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    link = socket.socket(fileno=socket_fd)
    try:
        hello = msgspec.msgpack.decode(receive_frame(link), type=Hello)
        parser = Parser(ParseRules(**hello.rules), arena_fds, UsualLimits(**hello.usual) if hello.usual else None)
        limit_memory(hello.memory_bytes_max)
        while True:
            frame = receive_frame(link)
            limit_cpu(hello.cpu_seconds_max)
            send_frame(link, parser.answer(frame))
    except (EOFError, OSError):
        return
    except MemoryError:
        os._exit(EXIT_OUT_OF_MEMORY)  # when out of memory, only an immediate exit is reliable


def limit_memory(bytes_max: int) -> None:
    """Limits the additional memory of this process, in bytes; 0 means no limit."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if bytes_max <= 0:
        return
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # closest equivalent on systems other than Linux
        resource.setrlimit(resource.RLIMIT_DATA, (bytes_max, bytes_max))
        return
    limit_bytes = pages * resource.getpagesize() + bytes_max
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))


def limit_cpu(seconds_max: int) -> None:
    """Ends the process with SIGXCPU after this much more CPU time, in seconds, rounded up; 0 means no limit."""
    if seconds_max > 0:
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        soft = math.ceil(time.process_time()) + seconds_max
        resource.setrlimit(resource.RLIMIT_CPU, (soft if hard < 0 else min(soft, hard), hard))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
