"""The fleet of tests/integration/fleet, for tests that look at it from outside."""

from tests.integration.fleet.conftest import fleet, fleet_options

__all__ = ["fleet", "fleet_options"]
