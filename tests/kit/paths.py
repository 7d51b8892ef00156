"""The directory of this repository, and the directory that contains recordings from other projects."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]


def foreign_fixtures() -> Path:
    """Returns the directory with recordings from other projects, which we may not redistribute; the directory may
    be missing.

    The directory is `REPLAYS_FIXTURES`, or `shared/fixtures` next to the repository or next to one of its parent
    directories.
    """
    if given := os.environ.get("REPLAYS_FIXTURES"):
        return Path(given)
    places = [parent / "shared" / "fixtures" for parent in ROOT.parents]
    return next((place for place in places if place.is_dir()), places[0])
