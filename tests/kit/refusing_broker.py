"""A Kafka broker that supports SASL PLAIN and refuses every password.

    with refusing_broker() as address: ...

Answers the first versions of ApiVersions, SaslHandshake and SaslAuthenticate as Apache Kafka does, and closes the
connection after the refusal. https://kafka.apache.org/protocol
"""

from __future__ import annotations

import contextlib
import socketserver
import struct
import threading
from collections.abc import Iterator

API_VERSIONS, SASL_HANDSHAKE, SASL_AUTHENTICATE, METADATA = 18, 17, 36, 3
UNSUPPORTED_VERSION, SASL_AUTHENTICATION_FAILED = 35, 58
# key, first and last version
SUPPORTED_VERSIONS = ((METADATA, 0, 1), (SASL_HANDSHAKE, 0, 1), (API_VERSIONS, 0, 0), (SASL_AUTHENTICATE, 0, 0))
REASON = b"Authentication failed: Invalid username or password"


class _Connection(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError, struct.error):
            while size := self.rfile.read(4):
                request = self.rfile.read(struct.unpack(">i", size)[0])
                key, version, number = struct.unpack(">hhi", request[:8])
                answer = struct.pack(">i", number) + self._answer(key, version)
                self.wfile.write(struct.pack(">i", len(answer)) + answer)
                if key == SASL_AUTHENTICATE:
                    return

    def _answer(self, key: int, version: int) -> bytes:
        if key == API_VERSIONS:
            error = UNSUPPORTED_VERSION if version else 0
            return struct.pack(">hi", error, len(SUPPORTED_VERSIONS)) + b"".join(
                struct.pack(">hhh", *one) for one in SUPPORTED_VERSIONS
            )
        if key == SASL_HANDSHAKE:
            return struct.pack(">hih", 0, 1, 5) + b"PLAIN"
        assert key == SASL_AUTHENTICATE, key
        return struct.pack(">hh", SASL_AUTHENTICATION_FAILED, len(REASON)) + REASON + struct.pack(">i", 0)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@contextlib.contextmanager
def refusing_broker() -> Iterator[str]:
    """Runs the broker; yields its address."""
    server = _Server(("127.0.0.1", 0), _Connection)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
