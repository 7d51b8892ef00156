"""One parsing process: frames of work in, frames of answers out, until the reader is gone.

Started by `ingest.reader.parsing.inline.ProcessParser` as `python -m ingest.reader.parsing.child SOCKET ARENA`
(two descriptors).
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

from ingest.core.parse import ParseRules, Usual
from ingest.reader.parsing.link import EXIT_MEMORY, Hello, Parser, receive_frame, send_frame


def main(socket_fd: int, arena_fd: int) -> None:
    """Serves one socket. SIGINT and SIGTERM are the reader's business: it closes the socket when it is done.

    Whatever a message does to this process (memory that is not there, a fault in a library) ends it; the reader
    starts another one and finds out which message it was.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    link = socket.socket(fileno=socket_fd)
    try:
        hello = msgspec.msgpack.decode(receive_frame(link), type=Hello)
        parser = Parser(ParseRules(**hello.rules), arena_fd, Usual(**hello.usual) if hello.usual else None)
        limit_memory(hello.memory_bytes_max)
        while True:
            frame = receive_frame(link)
            limit_cpu(hello.cpu_seconds_max)
            send_frame(link, parser.answer(frame))
    except (EOFError, OSError):
        return
    except MemoryError:
        os._exit(EXIT_MEMORY)  # at once: nothing else can be relied on


def limit_memory(bytes_max: int) -> None:
    """The process may take so much more than it has. 0: as much as there is."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if bytes_max <= 0:
        return
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # no Linux: the nearest there is
        resource.setrlimit(resource.RLIMIT_DATA, (bytes_max, bytes_max))
        return
    most = pages * resource.getpagesize() + bytes_max
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def limit_cpu(seconds_max: int) -> None:
    """SIGXCPU ends the process after so much more CPU time, rounded up to whole seconds. 0: no limit."""
    if seconds_max > 0:
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        soft = math.ceil(time.process_time()) + seconds_max
        resource.setrlimit(resource.RLIMIT_CPU, (soft if hard < 0 else min(soft, hard), hard))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
