"""The fleet of tests/integration/fleet, for tests that look at it from outside."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "fleet"))
from fleet_kit import fleet, fleet_options

__all__ = ["fleet", "fleet_options"]
