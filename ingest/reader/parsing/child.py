"""One parsing process: frames of work in, frames of answers out, until the reader is gone.

Started by `ingest.reader.parsing.inline.ProcessParser` as `python -m ingest.reader.parsing.child SOCKET ARENA`
(two descriptors).
"""

from __future__ import annotations

import resource
import signal
import socket
import sys

import msgspec

from ingest.core.parse import ParseRules
from ingest.reader.parsing.link import Hello, Parser, receive_frame, send_frame


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
        if hello.memory_bytes_max:
            resource.setrlimit(resource.RLIMIT_DATA, (hello.memory_bytes_max, hello.memory_bytes_max))
        parser = Parser(ParseRules(**hello.rules), arena_fd)
        while True:
            send_frame(link, parser.answer(receive_frame(link)))
    except (EOFError, OSError):
        return


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
