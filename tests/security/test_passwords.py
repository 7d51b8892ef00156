"""No password in a setting is ever printed, whatever fails."""

from __future__ import annotations

import os
import sys

import pytest

from ingest.operate.check import run
from ingest.settings import Settings, SettingsError, load
from tasks.errors import shortened
from tasks.printed import without_secrets
from tests.kit.prestarted import PARENTS

PASSWORD = "hunter-2-Planted"
PLANTED = {
    "REPLAYS_REDIS_URL": f"redis://reader:{PASSWORD}@127.0.0.1:1/0",
    "REPLAYS_CLICKHOUSE_URL": f"http://writer:{PASSWORD}@127.0.0.1:1",
    "REPLAYS_CLICKHOUSE_PASSWORD": PASSWORD,
    "REPLAYS_GCS_ENDPOINT": f"http://writer:{PASSWORD}@127.0.0.1:1",
    "REPLAYS_BIGQUERY_ENDPOINT": f"http://writer:{PASSWORD}@127.0.0.1:1",
    "REPLAYS_KAFKA_BROKERS": "127.0.0.1:1",
    "REPLAYS_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
    "REPLAYS_KAFKA_SASL_MECHANISM": "PLAIN",
    "REPLAYS_KAFKA_SASL_USERNAME": "reader",
    "REPLAYS_KAFKA_SASL_PASSWORD": PASSWORD,
    "REPLAYS_FLOWER_BASIC_AUTH": f"operator:{PASSWORD}",
    "REPLAYS_SENTRY_DSN": f"https://{PASSWORD}@127.0.0.1:1/1",
    "REPLAYS_SINK_TIMEOUT_SECONDS": "1",
    "REPLAYS_REDIS_TIMEOUT_SECONDS": "1",
}


def output_of(*arguments: str, **more: str) -> str:
    """Runs a command while no server is reachable, and returns all of its output."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("REPLAYS_")}
    result = PARENTS.run([sys.executable, "-m", "ingest.cli", *arguments], {**environ, **PLANTED, **more})
    assert result.exit_code in (1, 2), result.stderr
    return result.stdout + result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("check",),
        ("check", "--json"),
        ("status",),
        ("replays", "ls"),
        ("dlq", "ls"),
        ("migrate",),
    ],
    ids=" ".join,
)
def test_a_command_that_reaches_no_server_prints_no_password(arguments: tuple[str, ...]):
    """If every setting that can hold a password contains one and no server is reachable, no command prints a
    password.
    """
    output = output_of(*arguments)

    assert output.strip()
    assert PASSWORD not in output


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REPLAYS_CLICKHOUSE_URL", f"http://writer:{PASSWORD}@[::1"),
        ("REPLAYS_CLICKHOUSE_URL", f"http://writer:{PASSWORD}/x@127.0.0.1:port"),
        ("REPLAYS_GCS_ENDPOINT", f"http://writer:{PASSWORD}@127.0.0.1:port"),
        ("REPLAYS_REDIS_URL", f"http://reader:{PASSWORD}@h"),
        ("REPLAYS_KAFKA_OPTIONS", f'{{"sasl.password": "{PASSWORD}"'),
    ],
)
def test_an_address_that_cannot_be_read_is_refused_without_its_password(name: str, value: str):
    """An address that cannot be parsed is refused with an error that does not quote it."""
    assert PASSWORD not in output_of("check", **{name: value})


def test_every_finding_of_check_hides_secrets(monkeypatch: pytest.MonkeyPatch):
    """Secrets are redacted in every finding of `check`, even if a finding quotes the URL-decoded password."""
    monkeypatch.setenv("REPLAYS_REDIS_URL", "redis://w:p%40ss%2Fword-1@127.0.0.1:1")
    monkeypatch.setenv("REPLAYS_KAFKA_GROUP", "p@ss/word-1")
    monkeypatch.setenv("REPLAYS_KAFKA_BROKERS", "127.0.0.1:1")
    for name in ("REPLAYS_CLICKHOUSE_URL", "REPLAYS_GCS_ENDPOINT", "REPLAYS_BIGQUERY_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("REPLAYS_SINK_TIMEOUT_SECONDS", "1")

    findings = run(Settings())

    assert any(finding.is_bad for finding in findings)
    assert not any("word-1" in text for finding in findings for text in finding.as_dict().values())


@pytest.mark.parametrize(
    "text",
    [
        f"cannot connect to redis://:{PASSWORD}@h:6379/0",
        f"http://user:{PASSWORD}/with/slashes:and@signs@h/",
        f"https://{PASSWORD}@sentry.example/1",
        f"http://h/?user=x&password={PASSWORD}&query=1",
        f"http://h/?X-Goog-Signature={PASSWORD}",
        f"http://h/?token={PASSWORD}",
        f"sasl.password={PASSWORD}",
        f"{{'clickhouse_password': '{PASSWORD}'}}",
        f"Authorization: Basic {PASSWORD}",
        f"'authorization': 'Bearer {PASSWORD}'",
    ],
)
def test_secrets_are_hidden_in_any_text(text: str):
    """In the error of a client or server, only the secret is replaced."""
    for output in (without_secrets(text), shortened(text)):
        assert PASSWORD not in output
        assert "***" in output


def test_text_without_secrets_is_unchanged():
    for text in (
        "http://127.0.0.1:8123: refused",
        "mail a@b.example",
        "https://medium.example/@who",
        "Basic rules",
    ):
        assert without_secrets(text) == text


def test_a_wrong_setting_is_reported_in_printable_text(monkeypatch: pytest.MonkeyPatch):
    """If the value of an invalid setting contains escape sequences, the error is printable text."""
    monkeypatch.setenv("REPLAYS_LOG_LEVEL", "\x1b]52;c;x\x07")
    with pytest.raises(SettingsError) as refused:
        load()
    assert all(letter.isprintable() or letter == "\n" for letter in refused.value.printed)
