"""Local TLS: throwaway certificates, and a TLS proxy in front of servers without TLS.

`make_certificates` runs `openssl`. `TlsProxy` terminates TLS and forwards to a server on the loopback interface,
as a load balancer does; the embedded Redis and ClickHouse are built without TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ingest.local.servers.processes import HOST, LocalError

COPY_BYTES = 64 * 1024
START_SECONDS_MAX = 10.0


@dataclass(frozen=True, slots=True)
class Certificates:
    """The PEM files for TLS: the CA certificate, the server's certificate and key in one file, and a client's
    certificate and key.
    """

    ca: Path
    server: Path
    client_certificate: Path
    client_key: Path


def make_certificates(directory: Path) -> Certificates:
    """Creates a throwaway certificate authority and two certificates signed by it, valid for a day. Raises
    LocalError.

    The server's certificate is for 127.0.0.1 and localhost only.
    """
    directory.mkdir(parents=True, exist_ok=True)

    def openssl(*arguments: str) -> None:
        done = subprocess.run(["openssl", *arguments], cwd=directory, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LocalError(f"openssl {arguments[0]}: {done.stderr[-1000:]}")

    authority = ["-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=local authority"]
    # Python 3.13 and later reject a CA certificate that has no key usage extension.
    authority += ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    openssl("req", "-x509", *authority, "-keyout", "ca.key", "-out", "ca.pem")
    (directory / "names").write_text(
        f"subjectAltName=IP:{HOST},DNS:localhost\nauthorityKeyIdentifier=keyid\nbasicConstraints=CA:FALSE\n"
    )
    for name in ("server", "client"):
        request = ["-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"]
        openssl("req", *request, "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-extfile", "names"]
        openssl("x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.pem")
    pair = directory / "server-pair.pem"
    pair.write_text((directory / "server.key").read_text() + (directory / "server.pem").read_text())
    return Certificates(directory / "ca.pem", pair, directory / "client.pem", directory / "client.key")


class TlsProxy:
    """Listens with TLS on its own port and forwards all bytes to `target_port` in plain text.

    The proxy is a context manager; entering it sets `port`. Connections that do not begin with a handshake are
    closed.
    """

    def __init__(self, target_port: int, certificates: Certificates) -> None:
        self.port = 0
        self._target_port = target_port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificates.server)
        self._loop = asyncio.new_event_loop()
        # A failed handshake is not logged, because the client reports it.
        self._loop.set_exception_handler(lambda loop, about: None)
        self._thread = threading.Thread(target=self._loop.run_forever, name="tls-proxy", daemon=True)
        self._copies: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(START_SECONDS_MAX)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(START_SECONDS_MAX)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_SECONDS_MAX)
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, HOST, 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        for copy in self._copies:
            copy.cancel()
        await asyncio.gather(*self._copies, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward_reader, onward_writer = await asyncio.open_connection(HOST, self._target_port)
        except OSError:
            writer.close()
            return
        pairs = ((reader, onward_writer), (onward_reader, writer))
        for source, sink in pairs:
            copy = asyncio.ensure_future(_copy(source, sink))
            self._copies.add(copy)
            copy.add_done_callback(self._copies.discard)


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Copies bytes until `source` ends or a connection fails, and then closes `sink`."""
    with contextlib.suppress(OSError):
        while data := await source.read(COPY_BYTES):
            sink.write(data)
            await sink.drain()
    sink.close()
