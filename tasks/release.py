"""The release of this process."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

PACKAGE = "replays-ingest"


def _installed() -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:  # the process runs from a source directory
        return ""


RELEASE = _installed()
"""The version in `pip list`, for example 0.2.0; "" if the package is not installed."""
