"""One parsing process: frames of messages in, frames of outcomes out, until the reader is gone.

Started by `ingest.parsing.ProcessParser` as `python -m ingest.parse_process FD`.
"""

from __future__ import annotations

import signal
import socket
import sys

import msgspec

from ingest.core.model import Message, Segment
from ingest.core.parse import ParseRules, parse
from ingest.parsing import Parsed, receive_frame, send_frame


def main(descriptor: int) -> None:
    """Serves one socket. SIGINT and SIGTERM are the reader's business: it closes the socket when it is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    link = socket.socket(fileno=descriptor)
    decode = msgspec.msgpack.Decoder(list[Message]).decode
    encode = msgspec.msgpack.Encoder().encode
    try:
        rules = ParseRules(**msgspec.json.decode(receive_frame(link)))
        while True:
            outcomes = [parse(message, rules) for message in decode(receive_frame(link))]
            parsed = [
                Parsed(outcome, None) if isinstance(outcome, Segment) else Parsed(None, outcome)
                for outcome in outcomes
            ]
            send_frame(link, encode(parsed))
    except (EOFError, OSError):
        return


if __name__ == "__main__":
    main(int(sys.argv[1]))
