"""The generated pages of docs/ match the code, and wrong settings are reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.settings import Settings, SettingsError, load
from tools import documents


@pytest.fixture(autouse=True)
def remove_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the caller's REPLAYS_* variables."""
    import os

    for name in [name for name in os.environ if name.startswith("REPLAYS_")]:
        monkeypatch.delenv(name)


def test_no_page_is_stale():
    """No generated page is outdated; `python -m tools.documents` regenerates them."""
    assert documents.stale() == []


def test_every_setting_is_described():
    """Every setting has a description, and every numeric setting also has bounds."""
    for name, field in Settings.model_fields.items():
        assert field.description, name
        if field.annotation in (int, float):
            assert field.metadata, f"{name} has no bounds"


def test_a_misspelt_name_is_refused_with_the_right_one(monkeypatch: pytest.MonkeyPatch):
    """A misspelt name is refused, and the error suggests the right name; if it were ignored, the default would
    apply.
    """
    monkeypatch.setenv("REPLAYS_BATCH_BYTE_MAX", "1000000")

    with pytest.raises(
        SettingsError, match="REPLAYS_BATCH_BYTE_MAX is an unknown setting; did you mean REPLAYS_BATCH_BYTES_MAX"
    ):
        load()


@pytest.mark.parametrize(
    "name", ["REPLAYS_WEB_PORT", "REPLAYS_CLICKHOUSE_HOST", "REPLAYS_FLOWER_PASSWORD", "REPLAYS_KAFKA_URL"]
)
def test_a_name_of_something_else_is_not_suggested(name: str, monkeypatch: pytest.MonkeyPatch):
    """For REPLAYS_WEB_PORT, the suggestion would be REPLAYS_FLOWER_PORT, which sets Flower's port instead of that
    of the web pages.
    """
    monkeypatch.setenv(name, "8000")

    with pytest.raises(SettingsError) as caught:
        load()

    assert str(caught.value).startswith(f"wrong setting: {name} is an unknown setting; remove it")
    assert "did you mean" not in str(caught.value)


def test_a_wrong_value_names_setting_value_and_range(monkeypatch: pytest.MonkeyPatch):
    """Wrong values are all reported at once, one line each, with setting, value and range."""
    monkeypatch.setenv("REPLAYS_BATCH_MESSAGES_MAX", "0")
    monkeypatch.setenv("REPLAYS_KAFKA_OFFSET_RESET", "newest")

    with pytest.raises(SettingsError) as caught:
        load()

    text = str(caught.value)
    assert "REPLAYS_BATCH_MESSAGES_MAX='0'" in text
    assert "allowed: 1 to 100000" in text
    assert "REPLAYS_KAFKA_OFFSET_RESET='newest'" in text
    assert "allowed: one of earliest, latest, error" in text


def test_a_wrong_secret_is_not_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The error about a wrong secret does not contain the secret, because the error is logged."""
    settings = tmp_path / "settings.toml"
    settings.write_text("redis_url = 987654321\nbatch_byte_max = 1\n")
    monkeypatch.setenv("REPLAYS_SETTINGS_FILE", str(settings))

    with pytest.raises(SettingsError) as caught:
        load()

    assert "987654321" not in str(caught.value)
    assert "batch_byte_max" in str(caught.value)


def test_settings_of_the_embedded_stack_are_accepted(monkeypatch: pytest.MonkeyPatch):
    """The settings REPLAYS_LOCAL_* and REPLAYS_TEST_* are accepted, although they are not reader settings."""
    monkeypatch.setenv("REPLAYS_LOCAL_KAFKA", "tansu")
    monkeypatch.setenv("REPLAYS_TEST_SINKS", "/tmp")

    assert load().kafka_topic == "ingest-replay-recordings"
