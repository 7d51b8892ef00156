"""Seeds of the simulated worlds of a test run.

The seeds start at a random number, so that every run tries new worlds.
"""

from __future__ import annotations

import os

from ingest.testing.simulation.__main__ import random_start

VARIABLE = "SIMULATION_START"


def simulation_start() -> int:
    """Returns the first seed of this run.

    Parallel test processes inherit the seed from the process that reports it.
    """
    return int(os.environ.setdefault(VARIABLE, str(random_start())))
