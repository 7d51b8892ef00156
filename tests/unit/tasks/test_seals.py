"""A seal is valid only for one purpose, one payload and one key.

Keys can be rotated, and unsealed entries are accepted only if this is configured.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.seals import UNSEALED, Purpose, Seals, keys_of
from tasks.settings import Settings

OLD, NEW = b"old-key-" * 4, b"new-key-" * 4
SEALS = Seals((OLD,))


@pytest.mark.parametrize(
    ("purpose", "parts"),
    [
        (Purpose.PROGRESS, ("key", b"task", "content")),
        (Purpose.MARK, ("ke", b"ytask", "content")),
        (Purpose.MARK, ("key", b"taskcontent", "")),
        (Purpose.MARK, ("key", b"task")),
        (Purpose.MARK, ("key", b"task", "Content")),
    ],
    ids=["another purpose", "bytes moved", "joined", "left out", "changed"],
)
def test_a_seal_is_valid_only_for_its_purpose_and_content(purpose: Purpose, parts: tuple[bytes | str, ...]):
    seal = SEALS.seal(Purpose.MARK, "key", b"task", "content")

    assert SEALS.verifies(seal, Purpose.MARK, "key", b"task", "content")
    assert not SEALS.verifies(seal, purpose, *parts)


def test_keys_rotate_without_a_verification_failure():
    """No verification fails while keys are rotated: all processes get `old,new`, then `new,old`, then `new`."""
    both, turned, after = Seals((OLD, NEW)), Seals((NEW, OLD)), Seals((NEW,))

    for sealing, verifying in [(SEALS, both), (both, SEALS), (both, turned), (turned, both), (turned, after)]:
        assert verifying.verifies(sealing.seal(Purpose.MARK, "x"), Purpose.MARK, "x")
    assert not after.verifies(SEALS.seal(Purpose.MARK, "x"), Purpose.MARK, "x")


def test_unsealed_entries_are_accepted_only_when_configured():
    """Unsealed entries are accepted only if this is configured. With a key, an entry with an invalid seal is never
    accepted.
    """
    lenient = Seals((OLD,), unsealed_accepted=True)
    foreign = Seals((NEW,)).seal(Purpose.MARK, "x")

    assert [seals.verifies(None, Purpose.MARK, "x") for seals in (UNSEALED, lenient, SEALS)] == [True, True, False]
    assert [seals.verifies(foreign, Purpose.MARK, "x") for seals in (UNSEALED, lenient, SEALS)] == [
        True,
        False,
        False,
    ]
    assert not SEALS.verifies(b"\xff", Purpose.MARK, "x")


def test_without_a_key_nothing_is_sealed():
    assert (UNSEALED.seal(Purpose.MARK, "x"), UNSEALED.content(b"x"), UNSEALED.active) == (b"", "", False)


def test_keys_have_a_minimum_length_and_no_duplicates():
    assert keys_of("") == ()
    assert keys_of(f"{OLD.decode()}, {NEW.decode()}\n") == (OLD, NEW)
    for text in ("short", f"{OLD.decode()},{OLD.decode()}"):
        with pytest.raises(ValueError, match="key"):
            keys_of(text)


def test_a_key_is_read_from_environment_or_file_and_never_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    file = tmp_path / "key"
    file.write_bytes(OLD + b"\n")
    monkeypatch.setenv("REPLAYS_SHARED_KEY_FILE", str(file))

    settings = Settings()

    assert settings.seals == SEALS
    assert OLD.decode() not in f"{settings!r} {settings.seals!r} {settings.model_dump()}"
    monkeypatch.setenv("REPLAYS_SHARED_KEY", OLD.decode())
    with pytest.raises(ValidationError, match="set one of the two"):
        Settings()
    monkeypatch.delenv("REPLAYS_SHARED_KEY")
    for text in ("", "short"):
        file.write_text(text)
        with pytest.raises(ValidationError, match="REPLAYS_SHARED_KEY_FILE"):
            Settings()
