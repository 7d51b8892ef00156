"""Tests how and when Celery is configured, and how a wrong setting is reported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import celeryconfig
from tasks.configuration import configuration, current
from tasks.loading import SettingsError, load_fleet
from tasks.settings import Settings
from tests.kit.paths import ROOT

WRONG = {"REPLAYS_REDIS_TIMEOUT_SECONDS": "soon"}


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in the root directory of the repository."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REPLAYS_")}
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "module", ["celeryconfig", "tasks.configuration", "tasks.celery", "tasks.flush", "tasks.flower.start"]
)
def test_an_import_reads_no_settings(module: str) -> None:
    """Importing a module reads no settings, so a wrong setting causes no error before its value is needed."""
    result = run("-c", f"import {module}", **WRONG)

    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "words",
    [["worker"], ["inspect", "ping"], ["report"], ["flower"], ["beat"]],
    ids=" ".join,
)
def test_a_celery_command_with_a_wrong_setting_names_it_and_exits_with_2(words: list[str]) -> None:
    """A celery command with a wrong setting exits with 2 and prints one line that names the setting, without a
    traceback.
    """
    result = run("-m", "celery", "-A", "tasks", *words, **WRONG)

    assert result.returncode == 2, result.stderr
    (mistake,) = result.stderr.strip().splitlines()
    assert mistake.startswith("wrong setting: REPLAYS_REDIS_TIMEOUT_SECONDS=")
    assert "0.1 to 60" in mistake
    assert result.stdout == ""


def test_celery_reads_the_computed_values_through_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attributes of Celery's configuration file are exactly the computed values."""
    monkeypatch.setenv("REPLAYS_KEY_PREFIX", "mine")
    current.cache_clear()
    try:
        values = {name: getattr(celeryconfig, name) for name in dir(celeryconfig)}
    finally:
        current.cache_clear()

    assert values == configuration(Settings(key_prefix="mine"))


def test_unknown_celery_settings_are_absent() -> None:
    assert not hasattr(celeryconfig, "task_always_eager")
    assert not hasattr(celeryconfig, "__wrapped__")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"REPLAYS_REDIS_URL": "nonsense"}, "redis://"),
        ({"REPLAYS_REDIS_URL": "http://redis:6379"}, "redis://"),
        ({"REPLAYS_REDIS_URL": "redis://user:hunter2@redis:port/0"}, "redis://"),
        ({"REPLAYS_REDIS_URL": "redis://user:hunter2@redis:6379/first"}, "redis://"),
        ({"REPLAYS_REDIS_URL": ""}, "redis://"),
        ({"REPLAYS_REDIS_TLS_CA_FILE": "/nowhere/ca.pem"}, "/nowhere/ca.pem"),
        ({"REPLAYS_TASK_SECURITY_KEY_FILE": "pyproject.toml"}, "set all or none"),
        (
            {
                "REPLAYS_TASK_SECURITY_KEY_FILE": "/nowhere/fleet.key",
                "REPLAYS_TASK_SECURITY_CERTIFICATE_FILE": "/nowhere/fleet.pem",
                "REPLAYS_TASK_SECURITY_STORE": "/nowhere/*.pem",
            },
            "/nowhere/fleet.key",
        ),
        ({"REPLAYS_SETTINGS_FILE": "/nowhere/replays.toml"}, "/nowhere/replays.toml"),
        ({"REPLAYS_SINKS": "gcs,kafka,dead_letter"}, "any of gcs, clickhouse, bigquery, datadog, dead_letter"),
    ],
)
def test_unusable_settings_are_refused_with_what_to_do(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error for unusable settings says what to do and contains no secret."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError) as refused:
        load_fleet()

    assert expected in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1", "redis://:secret@redis:6379/1", "redis://[::1]:6379", "redis:///2"]
)
def test_addresses_of_redis_that_clients_accept_are_accepted(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLAYS_REDIS_URL", url)

    assert load_fleet().redis_url.get_secret_value() == url


def test_a_worker_without_the_package_that_a_setting_needs_exits_with_2(tmp_path: Path) -> None:
    """If a setting needs a package that is not installed, the worker exits with 2 and names the extra to
    install.
    """
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("")

    result = run("-m", "celery", "-A", "tasks", "worker", REPLAYS_TRACING="true", PYTHONPATH=str(tmp_path))

    assert result.returncode == 2, result.stderr
    assert "install replays-ingest[otel]" in result.stderr
    assert "Traceback" not in result.stderr
