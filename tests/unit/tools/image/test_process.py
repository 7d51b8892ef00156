"""The privileges of a container's first process are read from outside, where the container cannot falsify them."""

from __future__ import annotations

import pytest

from tools.image.outcome import Clock
from tools.image.system import breaches

STATUS = (
    "Name:\tpython\nNSpid:\t4242\t1\nUid:\t10001\t10001\t10001\t10001\nCapPrm:\t0000000000000000\n"
    "CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\n"
)
MOUNTS = "overlay / overlay ro,relatime 0 0\ntmpfs /tmp tmpfs rw,nosuid 0 0\n"


def test_a_confined_process_has_no_breach():
    """No breach is reported for a process in the state that docker-compose.yml requires."""
    assert breaches(STATUS, MOUNTS) == []


@pytest.mark.parametrize(
    ("was", "now", "breach"),
    [
        ("4242\t1", "4242\t7", "process 1"),
        ("Uid:\t10001", "Uid:\t0", "runs as user 0"),
        ("CapBnd:\t0000000000000000", "CapBnd:\t00000000a80425fb", "CapBnd"),
        ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "gain privileges"),
        ("overlay ro,", "overlay rw,", "writable"),
    ],
)
def test_each_breach_is_named(was: str, now: str, breach: str):
    (found,) = breaches(STATUS.replace(was, now), MOUNTS.replace(was, now))

    assert breach in found


def test_a_step_gets_at_most_the_remaining_time():
    """A step gets at most the remaining time, but at least one second."""
    at = [100.0]
    clock = Clock(10.0, now=lambda: at[0])
    assert clock.seconds_for_step(30) == 10
    at[0] = 108.0
    assert clock.seconds_for_step(30) == 2
    at[0] = 120.0
    assert clock.seconds_for_step(30) == 1
