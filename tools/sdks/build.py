"""Builds any version of the SDK for browsers, as `ingest/trial/sdk` builds the shipped one."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "ingest/trial/sdk"
PACKAGE = "@sentry/browser"
COMMAND_SECONDS_MAX = 300.0
NO_CAUSE = "npm error code"  # the first line of npm's error output, which does not state the cause
OPTIONS = ("--bundle", "--format=iife", "--global-name=Sentry", "--minify", "--target=es2021")


class BuildError(Exception):
    """Raised if a version could not be built. The message is one line."""


@dataclass(frozen=True, slots=True)
class Sdk:
    """A built script and its exact version."""

    version: str
    script: Path


def built(wanted: str, directory: Path) -> Sdk:
    """Builds the newest release of a major version ("7"), or an exact version ("7.120.4"). Raises BuildError."""
    if shutil.which("npm") is None:
        raise BuildError("npm is not installed; Debian's package is called npm")
    esbuild = json.loads((SOURCE / "package.json").read_text())["devDependencies"]["esbuild"]
    directory.mkdir()
    (directory / "package.json").write_text('{"private": true}\n')
    shutil.copy(SOURCE / "entry.js", directory)
    install = ("npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error")
    _run((*install, f"{PACKAGE}@{wanted}", f"esbuild@{esbuild}"), directory)
    bundler = str(directory / "node_modules/.bin/esbuild")
    _run((bundler, "entry.js", *OPTIONS, "--log-level=warning", "--outfile=sentry.js"), directory)
    package = json.loads((directory / "node_modules" / PACKAGE / "package.json").read_text())
    return Sdk(package["version"], directory / "sentry.js")


def _run(command: tuple[str, ...], directory: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX, check=False
        )
    except subprocess.TimeoutExpired:
        raise BuildError(f"{command[0]} did not end within {COMMAND_SECONDS_MAX:.0f} s") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith(NO_CAUSE)]
        raise BuildError(f"cannot build {directory.name}: {lines[0] if lines else 'no output'}")
