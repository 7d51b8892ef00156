"""Tests the definitions of the compared systems and of the profiles of our system."""

from __future__ import annotations

import pytest

from benchmarks.shapes import PEERS, PROFILE_SETTINGS, REFERENCE, Shape, with_profile
from ingest.local.launch import settings_of


def test_each_system_has_its_own_label() -> None:
    """Results are grouped by label, so all peers, layouts and profiles have different labels."""
    shapes = [Shape(system=peer) for peer in PEERS]
    layouts = [Shape(layout=layout) for layout in ("segment", "packed")]
    shapes += [with_profile(shape, profile) for shape in layouts for profile in PROFILE_SETTINGS]

    assert len({shape.label for shape in shapes}) == len(shapes)
    assert "Sentry until mid-2026" in Shape(system=REFERENCE).label
    assert with_profile(Shape(), "small").label.endswith(", small profile")


@pytest.mark.parametrize("profile", PROFILE_SETTINGS)
def test_the_settings_of_a_profile_are_accepted(profile: str) -> None:
    shape = with_profile(Shape(processes=4), profile)

    settings = settings_of(shape.settings())

    assert settings.worker_processes == shape.processes
    assert settings.batch_bytes_max <= settings.staged_bytes_max <= settings.in_flight_bytes_max


def test_the_small_profile_has_one_worker_process_and_less_in_flight() -> None:
    small = settings_of(with_profile(Shape(processes=4), "small").settings())

    assert small.worker_processes == 1
    assert small.in_flight_bytes_max < settings_of({}).in_flight_bytes_max


def test_given_settings_win_over_the_profile() -> None:
    """Settings in `extra` take precedence over those of the profile."""
    shape = with_profile(Shape(extra=(("REPLAYS_BATCH_BYTES_MAX", "1048576"),)), "small")

    assert settings_of(shape.settings()).batch_bytes_max == 1048576
