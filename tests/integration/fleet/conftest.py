"""The fixtures of the fleet's tests."""

from fleet_kit import fleet, fleet_options  # type: ignore[import-not-found]

__all__ = ["fleet", "fleet_options"]
