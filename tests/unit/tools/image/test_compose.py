"""docker-compose.yml is translated into options for `podman run`. Every key in the file is either applied or
reported as an error.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.paths import ROOT
from tools.image.compose import Service, built_services, service_names, third_party_images, unresolved_variables

FILE = ROOT / "docker-compose.yml"
VARIABLES = {"FLOWER_PASSWORD": "something-long"}
ADDRESSES = {
    "REPLAYS_KAFKA_BROKERS": "127.0.0.1:1",
    "REPLAYS_REDIS_URL": "redis://127.0.0.1:2/0",
    "REPLAYS_GCS_ENDPOINT": "http://127.0.0.1:3",
    "REPLAYS_CLICKHOUSE_URL": "http://127.0.0.1:4",
    "REPLAYS_BIGQUERY_ENDPOINT": "http://127.0.0.1:5",
    "REPLAYS_DATADOG_HOST": "127.0.0.1",
}


def write_compose_file(tmp_path: Path, body: str) -> Path:
    """Writes a Compose file with one service that is built from its directory."""
    path = tmp_path / "compose.yml"
    path.write_text(f"services:\n  one:\n    build: .\n    command: [run]\n    environment: {{}}\n{body}")
    return path


def test_our_services_are_the_ones_built_here():
    """Our services are those that are built from this repository; the other services use the vendors' images."""
    assert set(built_services(FILE, VARIABLES)) == {"migrate", "reader", "worker", "flower"}
    assert len(third_party_images(FILE, VARIABLES)) == len(service_names(FILE, VARIABLES)) - 4


def test_a_service_keeps_the_settings_of_the_file():
    """The worker has the command, hardening, settings, health check and stop timeout from docker-compose.yml."""
    worker = built_services(FILE, VARIABLES)["worker"]

    assert worker.command == ("celery", "-A", "tasks", "worker")
    assert set(worker.options) == {
        "--read-only",
        "--read-only-tmpfs=false",
        "--tmpfs=/tmp",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges:true",
    }
    assert worker.environment["REPLAYS_WORKER_HTTP_PORT"] == "9465"
    assert worker.health[:2] == ("python", "-c")
    assert worker.stop_seconds == 60


def test_a_named_volume_is_an_anonymous_one_here():
    """A named volume becomes an anonymous volume, which is removed with its container."""
    assert "--volume=/var/lib/replays" in built_services(FILE, VARIABLES)["flower"].options


def test_variables_and_their_defaults_are_filled_in():
    """Variables of the forms `${NAME:?...}` and `${NAME:-default}`, and `$$`, are replaced."""
    services = built_services(FILE, VARIABLES)

    assert services["flower"].environment["REPLAYS_FLOWER_BASIC_AUTH"] == "replays:something-long"
    assert services["reader"].environment["REPLAYS_CLICKHOUSE_PASSWORD"] == "replays"


def test_a_remaining_address_is_named():
    """If one server has no address, the error names its variable."""
    names = service_names(FILE, VARIABLES)
    reader = built_services(FILE, VARIABLES)["reader"]
    without = {name: value for name, value in ADDRESSES.items() if name != "REPLAYS_GCS_ENDPOINT"}

    assert unresolved_variables(reader, names) == sorted(ADDRESSES)
    assert unresolved_variables(reader.moved(without, {}), names) == ["REPLAYS_GCS_ENDPOINT"]
    assert unresolved_variables(reader.moved(ADDRESSES, {}), names) == []


def test_the_health_check_follows_the_port():
    service = Service("one", ("run",), {}, health=("get", "http://127.0.0.1:9464/readyz", "-t", "9464"))

    assert service.moved({}, {9464: 20001}).health == ("get", "http://127.0.0.1:20001/readyz", "-t", "9464")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("    privileged: true\n", "unknown key privileged"),
        ("    healthcheck: {test: [CMD-SHELL, x]}\n", "CMD-SHELL"),
        ("    stop_grace_period: 1m30s\n", "1m30s"),
        ("    volumes: ['/home:/home']\n", "/home:/home is not a named volume"),
    ],
)
def test_unknown_keys_are_refused(tmp_path: Path, body: str, error: str):
    """An unknown key in the Compose file is refused instead of being silently ignored."""
    with pytest.raises(ValueError, match=error):
        built_services(write_compose_file(tmp_path, body), {})
