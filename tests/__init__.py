"""Tests. `unit` and `integration` mirror the packages that they test; shared helpers are in `kit`."""
