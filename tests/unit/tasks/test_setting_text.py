"""Names that no server accepts are refused when the settings are read (tasks.setting_text)."""

from __future__ import annotations

import pytest
from flower.utils.authentication import authenticate, validate_auth_option

from ingest.settings import Settings
from tasks.setting_text import BLANK_NOT_ALLOWED, FORMS, check

ACCEPTED = {
    "bigquery_location": ("", "EU", "europe-west1"),
    "bigquery_project": ("replays", "example.com:replays-1"),
    "clickhouse_user": ("default", "ingest user", ""),
    "datadog_host": ("127.0.0.1", "::1", "fe80::1%eth0", "agent.monitoring.svc"),
    "datadog_socket": ("", "/var/run/dsd.socket", "unixgram:///var/run/dsd.socket"),
    "dead_letter_topic": ("", "letters"),
    "flower_oauth_emails": (
        "",
        "ann@example.com",
        "ann@example.com|o'neil+on-call@example.co.uk",
        ".*@example.com",
    ),
    "flower_oauth_key": ("", "1234-abc.apps.googleusercontent.com"),
    "gcs_bucket": ("replays", "my_bucket-1.example.com"),
    "gcs_location": ("", "US"),
    "kafka_group": ("replays-ingest", "team/replays ingest"),
    "kafka_instance_id": ("", "reader-0"),
    "kafka_topic": ("a", "ingest-replay-recordings", "a..b", "x" * 249),
}
REFUSED = {
    "bigquery_location": ("EU west",),
    "bigquery_project": ("", "My Project"),
    "clickhouse_user": (" default",),
    "datadog_host": ("", "http://agent", "agent:8125/", "[::1]"),
    "datadog_socket": ("dsd.socket", "unix://dsd.socket", "tcp:///x"),
    "dead_letter_topic": (".", "two words"),
    "flower_oauth_emails": (
        " ",
        ".*",
        "*@example.com",
        ".*@.*",
        "^ann@example.com$",
        r".*@example\.com",
        "a@b.c,d@e.f",
    ),
    "flower_oauth_key": ("key ",),
    "gcs_bucket": ("ab", "gs://replays", "Replays", "-replays"),
    "gcs_location": ("US/EU",),
    "kafka_group": ("", " ", "group "),
    "kafka_instance_id": ("reader 0", ".."),
    "kafka_topic": ("", ".", "..", "topic/one", "x" * 250, "tópico"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_valid_names_are_accepted(name: str) -> None:
    for text in ACCEPTED[name]:
        check(name, text)


@pytest.mark.parametrize("name", REFUSED)
def test_invalid_names_are_refused_with_the_allowed_form(name: str) -> None:
    for text in REFUSED[name]:
        with pytest.raises(ValueError, match="allowed: "):
            check(name, text)


@pytest.mark.parametrize("name", sorted(set(Settings.model_fields) - {"shared_key"}))
def test_no_setting_holds_control_characters_or_invalid_utf_8(name: str) -> None:
    for text in ("a\nb", "\x1b[2J", "\x7f", "\x9b2J"):
        with pytest.raises(ValueError, match="control character"):
            check(name, text)
    with pytest.raises(ValueError, match="UTF-8"):
        check(name, "\udcff")


def test_a_secret_of_only_spaces_is_refused() -> None:
    for name in BLANK_NOT_ALLOWED:
        with pytest.raises(ValueError, match="consists only of spaces"):
            check(name, "  ")
        check(name, "")


def test_shared_keys_may_be_on_separate_lines() -> None:
    check("shared_key", "a" * 32 + "\n" + "b" * 32 + "\n")


def test_every_form_is_of_a_setting_and_fits_its_default() -> None:
    for name in FORMS:
        check(name, Settings.model_fields[name].default)


@pytest.mark.parametrize("text", ACCEPTED["flower_oauth_emails"][1:])
def test_flower_admits_somebody_with_each_accepted_pattern_of_addresses(text: str) -> None:
    """Flower's own comparison matches an address of the pattern, and not every address."""
    somebody = text.split("|")[0].replace(".*", "ann")

    assert validate_auth_option(text)
    assert authenticate(text, somebody)
    assert not authenticate(text, "somebody@anywhere.invalid")
