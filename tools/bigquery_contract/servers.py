"""The servers of the contract suite: our emulator, and two third-party servers in separate virtual environments.

The third-party servers cannot share our environment, because they need other versions of protobuf, sqlglot and
Python. Their packages are pinned in `*.txt`. DuckDB, on which both third-party servers are built, downloads
extensions when it starts; these environments instead install the extensions from packages, in separate home
directories.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ingest.local.servers.base import HOST, Server
from ingest.local.servers.bigquery.server import BigQuery
from ingest.local.servers.processes import Children, LocalError, free_port, is_listening
from tasks.release import RELEASE

CONTRACT_DIRECTORY = Path(__file__).parent
EMULATOR = "emulator"
# The longest time for which the service may keep streamed rows in its buffer; the demo runs without a buffer.
STREAMING_BUFFER_SECONDS = 90 * 60.0
INSTALL_SECONDS_MAX = 600
INSTALL_EXTENSIONS = (
    "from duckdb_extensions import import_extension; import sys; [*map(import_extension, sys.argv[1:])]"
)


@dataclass(frozen=True, slots=True)
class Package:
    """A third-party server, installed from the package index. `python`: the versions of Python that it supports,
    preferred first.

    `extensions`: DuckDB extensions. `options`: command-line arguments, in which `{rest}`, `{grpc}` and `{data}`
    are replaced. `variables`: environment variables, with the same replacements.
    """

    name: str
    program: str
    python: tuple[str, ...]
    extensions: tuple[str, ...]
    options: tuple[str, ...]
    variables: Mapping[str, str]

    @property
    def pins(self) -> Path:
        """The file that lists the pinned versions of the server and its dependencies."""
        return CONTRACT_DIRECTORY / f"{self.name}.txt"

    @property
    def digest(self) -> str:
        """A hash that identifies the content of the file `pins`."""
        return hashlib.sha256(self.pins.read_bytes()).hexdigest()[:12]

    @property
    def version(self) -> str:
        """The pinned version of the server."""
        return self.version_of(self.name)

    def version_of(self, package: str) -> str:
        """Returns the pinned version of a package."""
        lines = dict(line.split("==") for line in self.pins.read_text().splitlines() if "==" in line)
        return lines[package]


BQEMULATOR = Package(
    "bqemulator",
    "bqemulator",
    ("3.11", "3.12", "3.13"),
    ("icu", "spatial"),
    ("start", "--rest-port", "{rest}", "--grpc-port", "{grpc}", "--project", "contract", "--log-level", "error"),
    {},
)
LOCAL_BIGQUERY = Package(
    "local-bigquery",
    "local-bigquery",
    ("3.13",),
    ("icu", "json", "ducklake", "spatial"),
    ("--host", HOST, "--port", "{rest}", "--grpc-port", "{grpc}", "--project", "contract", "--data-dir", "{data}"),
    {"DATA_DIR": "{data}"},
)
PACKAGES = (BQEMULATOR, LOCAL_BIGQUERY)


class ForeignServer(Server):
    """A third-party server with two ports."""

    name: ClassVar[str] = "foreign"
    # Both servers import hundreds of modules before they listen.
    start_seconds_max: ClassVar[float] = 120.0

    def __init__(self, children: Children, directory: Path, package: Package, environment: Path) -> None:
        super().__init__(children, directory, name=package.name)
        self._package, self._environment = package, environment
        self.grpc_port = free_port()

    def _filled(self, text: str) -> str:
        return text.format(rest=self.port, grpc=self.grpc_port, data=self.directory)

    def command(self) -> list[str]:
        """Returns the command line, which starts the program in the package's own environment."""
        program = self._environment / "bin" / self._package.program
        return [str(program), *map(self._filled, self._package.options)]

    def environment(self) -> Mapping[str, str]:
        """Returns the environment variables. `HOME` is a separate directory with the DuckDB extensions."""
        variables = {name: self._filled(value) for name, value in self._package.variables.items()}
        return {"HOME": str(self._environment / "home"), "PYTHONPATH": "", **variables}

    def is_ready(self) -> bool:
        """Returns whether both ports are open."""
        return is_listening(self.port) and is_listening(self.grpc_port)

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def storage_address(self) -> str:
        """The address of the Storage Write API."""
        return f"http://{HOST}:{self.grpc_port}"


def ours(children: Children, directory: Path) -> BigQuery:
    """Returns our emulator, with a streaming buffer."""
    return BigQuery(children, directory / EMULATOR, streaming_buffer_seconds=STREAMING_BUFFER_SECONDS)


@contextmanager
def running(cache: Path, directory: Path, names: tuple[str, ...]) -> Iterator[dict[str, BigQuery | ForeignServer]]:
    """Starts the named servers. Raises LocalError if a server cannot be installed or started."""
    started: dict[str, BigQuery | ForeignServer] = {}
    with Children(directory / "logs") as children:
        if EMULATOR in names:
            started[EMULATOR] = ours(children, directory)
        for package in PACKAGES:
            if package.name in names:
                environment = installed(package, cache)
                started[package.name] = ForeignServer(children, directory / package.name, package, environment)
        for server in started.values():
            server.start()
        yield started
        for server in started.values():
            server.stop()


def version_of(name: str) -> str:
    """Returns the version of a server and, for a third-party server, also that of its engine."""
    for package in PACKAGES:
        if package.name == name:
            return f"{package.version}, duckdb {package.version_of('duckdb')}"
    return RELEASE


def installed(package: Package, cache: Path) -> Path:
    """Returns the directory of a package's virtual environment, creating the environment unless it is in the
    cache. Raises LocalError.
    """
    place = cache.absolute() / f"{package.name}-{package.digest}"
    if (place / "complete").exists():
        return place
    shutil.rmtree(place, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    print(f"installing {package.name} {package.version}", flush=True)
    python = interpreter(package.python)
    uv = shutil.which("uv")
    inside = str(place / "bin" / "python")
    if uv:
        _run([uv, "venv", "--quiet", "--no-python-downloads", "--python", python, str(place)])
        _run([uv, "pip", "install", "--quiet", "--python", inside, "--requirement", str(package.pins)])
    else:
        _run([python, "-m", "venv", str(place)])
        _run([inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(package.pins)])
    home = place / "home"
    home.mkdir()
    _run([inside, "-c", INSTALL_EXTENSIONS, *package.extensions], {"HOME": str(home)})
    (place / "complete").touch()
    return place


def interpreter(versions: tuple[str, ...]) -> str:
    """Returns a Python interpreter of one of these versions. Raises LocalError if there is none."""
    for version in versions:
        candidates = [sys.executable, shutil.which(f"python{version}") or ""]
        candidates += map(str, sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python")))
        for candidate in filter(None, candidates):
            code = f"import sys; sys.exit('%d.%d' % sys.version_info[:2] != '{version}')"
            if subprocess.run([candidate, "-c", code], capture_output=True, check=False).returncode == 0:
                return candidate
    raise LocalError(f"no Python {' or '.join(versions)} is installed")


def _run(command: list[str], variables: Mapping[str, str] | None = None) -> None:
    environment = {**os.environ, "PYTHONPATH": "", **(variables or {})}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=INSTALL_SECONDS_MAX, check=False
    )
    if done.returncode:
        raise LocalError(f"{' '.join(command[:4])} failed:\n{done.stderr[-2000:]}")
