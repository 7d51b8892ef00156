"""The program behind the figures in docs/hardening.md still runs."""

from __future__ import annotations

import pytest

from benchmarks import seals


def test_the_cost_of_a_key_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """The program prints the cost of a shared key per MiB, per entry and per batch."""
    monkeypatch.setattr(seals, "ROUNDS", 2)

    seals.main()

    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "digest of a payload",
        "seal of an entry",
        "a batch of 8 MiB",
    ]
