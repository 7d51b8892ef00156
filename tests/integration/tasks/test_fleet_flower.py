"""Tests Flower as operators use it: it requires a login, its pages have content, and failed tasks have a retry
button.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Stage
from tasks.coordination import Coordination
from tasks.flower.start import FlowerRefused, options
from tasks.settings import Settings
from tests.kit.batches import make_batch
from tests.kit.fleet import Fleet
from tests.kit.flower import COMMANDS, PASSWORD, FlowerClient, running
from tests.kit.paths import ROOT
from tests.kit.prestarted import PARENTS


@pytest.fixture
def flower(fleet: Fleet, request: pytest.FixtureRequest) -> FlowerClient:
    """A running Flower, started by one of COMMANDS."""
    return running(fleet, getattr(request, "param", "celery"))


def failed_task(fleet: Fleet, flower: FlowerClient) -> str:
    """Fails and parks a batch; returns the id of its failed task once Flower lists it."""
    fleet.script("clickhouse", "transient")
    dispatcher = fleet.dispatcher()
    fleet.worker()
    batch = make_batch()
    failed = fleet.settle(dispatcher, batch, Stage.ROWS)
    assert isinstance(failed, on.FlushFailed)
    dispatcher.submit(do.Park(batch, Stage.ROWS, 1, failed.error, 300.0))
    fleet.wait(lambda: fleet.client.hexists("replays:parked", batch.id), "the batch to be parked")
    found: list[str] = []

    def known() -> bool:
        tasks = json.loads(flower("/api/tasks")[1])
        found[:] = [uuid for uuid, task in tasks.items() if task["state"] == "FAILURE"]
        return bool(found)

    fleet.wait(known, "flower to see the failure")
    return found[0]


def test_a_worker_answers_every_question_of_flower_and_of_celery_inspect(fleet: Fleet) -> None:
    """Every inspection command that Flower sends to a new worker is answered, so that its page of the worker has
    content. The reply names the broker but contains no password.
    """
    fleet.worker()

    for question in ("stats", "active_queues", "registered", "scheduled", "active", "reserved", "revoked", "conf"):
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "tests.kit.scripted_sinks", "inspect", question, "--json"],
            env={**os.environ, **fleet.environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, (question, done.stderr)
        (reply,) = json.loads(done.stdout).values()
        assert "error" not in reply, (question, reply)
        if question == "stats":
            assert reply["broker"]["transport_options"]["link"].startswith("redis://")


def test_a_failed_task_has_a_retry_button_for_its_batch(fleet: Fleet, flower: FlowerClient) -> None:
    """The page of a failed task has a retry button, and pressing it notifies the reader.

    The audit trail contains the action and the user.
    """
    page = flower("/task/" + urllib.parse.quote(failed_task(fleet, flower)))[1]
    form = urllib.parse.urlencode(
        {
            "batch_id": re.findall(r'name="batch_id" value="([^"]+)"', page)[0],
            "_xsrf": re.findall(r'name="_xsrf" value="([^"]+)"', page)[0],
        }
    )

    foreign = flower("/retry-batch", form, Origin="http://evil.example")
    stranger = flower("/retry-batch", form, password=None)
    status, text = flower("/retry-batch", form)

    assert 'id="retry-batch"' in page
    assert "rows/clickhouse/0" in page
    assert (foreign[0], stranger[0]) == (403, 401)
    assert status == 200, text
    assert "reader-1 was asked to retry ingest-replay-recordings-0-0-3" in text
    assert fleet.next_event() == on.RetryRequested("ingest-replay-recordings-0-0-3")
    (action,) = Coordination(fleet.client, fleet.settings).audited()
    assert (action["what"], action["by"]) == ("retry", "operator")


def test_a_parked_batch_is_retried_from_flowers_api(fleet: Fleet, flower: FlowerClient) -> None:
    """POST /api/task/async-apply/retry_batch with only the batch's id retries a parked batch."""
    failed_task(fleet, flower)
    body = json.dumps({"args": ["ingest-replay-recordings-0-0-3"]})

    refused = flower("/api/task/async-apply/retry_batch", body, password=None)
    status, text = flower("/api/task/async-apply/retry_batch", body)

    assert refused[0] == 401
    assert status == 200, text
    assert fleet.next_event() == on.RetryRequested("ingest-replay-recordings-0-0-3")


@pytest.mark.parametrize("flower", COMMANDS, indirect=True)
def test_unauthenticated_users_see_nothing(flower: FlowerClient) -> None:
    """Pages, API and metrics require the password; only the health check returns OK without it."""
    for path in ("/", "/tasks", "/api/workers", "/metrics", "/broker"):
        assert flower(path, password=None)[0] == 401
    for path in ("/", "/api/workers", "/metrics"):  # Further attempts would be throttled.
        assert flower(path, password="operator:wrong-password")[0] == 401
    assert flower("/metrics")[0] == 200
    assert flower("/retry-batch")[0] == 405  # Our route exists and accepts only POST.
    assert flower("/healthcheck", password=None) == (200, "OK")


@pytest.mark.parametrize(
    ("command", "arguments", "environment", "file"),
    [
        ("celery", [], {"REPLAYS_FLOWER_BASIC_AUTH": ""}, ""),
        ("replays-ingest", [], {"REPLAYS_FLOWER_BASIC_AUTH": ""}, ""),
        ("celery", ["--basic_auth="], {}, ""),
        ("replays-ingest", ["--basic_auth=me:short"], {}, ""),
        ("celery", ["--basic_auth=operator:correct-horse,guest:"], {}, ""),
        ("celery", [], {"FLOWER_BASIC_AUTH": ""}, ""),
        ("celery", [], {}, "basic_auth = []"),
        ("celery", ["--auth=^ann@example.com$"], {}, ""),
    ],
)
def test_it_never_starts_without_authentication(
    command: str, arguments: list[str], environment: dict[str, str], file: str, tmp_path: Path
) -> None:
    """Flower does not start if authentication is disabled by settings, arguments, the environment or a file, or if
    nobody could log in.

    The exit code is 2.
    """
    if file:
        (tmp_path / "flowerconfig.py").write_text(file)
    environment = {"REPLAYS_FLOWER_BASIC_AUTH": PASSWORD, "REPLAYS_FLOWER_PORT": "0", **environment}

    done = PARENTS.run([*COMMANDS[command], *arguments], os.environ | environment, tmp_path)

    assert done.exit_code == 2, done.stderr
    assert "REPLAYS_FLOWER_" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"flower_basic_auth": "operator"},
        {"flower_basic_auth": "operator:short"},
        {"flower_oauth_provider": "google"},
        {
            "flower_oauth_provider": "google",
            "flower_oauth_key": "k",
            "flower_oauth_secret": "s",
            "flower_oauth_redirect_uri": "https://flower.example/login",
        },
    ],
)
def test_flower_requires_a_safe_login(values: dict[str, str]) -> None:
    """If the password is missing or guessable, or access is open, the error names the setting to set instead."""
    with pytest.raises(FlowerRefused, match="REPLAYS_FLOWER_"):
        options(Settings(**values))  # type: ignore[arg-type]


@pytest.mark.parametrize(("fleet_options", "expected"), [({"TASK_EVENTS": "false"}, False), ({}, True)])
def test_task_events_are_published_only_if_they_are_enabled(
    fleet: Fleet, flower: FlowerClient, expected: bool
) -> None:
    """If task events are disabled, none are published even while Flower is running, and Flower lists no tasks.
    Flower's page of parked batches works in either case.
    """
    events = fleet.client.pubsub()
    events.psubscribe("*celeryev/task.*")
    fleet.script("clickhouse", "transient")
    dispatcher = fleet.dispatcher()
    fleet.worker()
    fleet.wait(lambda: json.loads(flower("/api/workers?refresh=1")[1]), "Flower to know the worker")
    batch = make_batch()
    failed = fleet.settle(dispatcher, batch, Stage.ROWS)
    assert isinstance(failed, on.FlushFailed)
    dispatcher.submit(do.Park(batch, Stage.ROWS, 1, failed.error, 300.0))
    fleet.wait(lambda: fleet.client.hexists("replays:parked", batch.id), "the batch to be parked")

    page = flower("/parked")

    assert page[0] == 200
    assert batch.id in page[1]
    if expected:
        fleet.wait(lambda: json.loads(flower("/api/tasks")[1]), "Flower to list the task")
    found = list(iter(lambda: events.get_message(timeout=0.0), None))
    assert any(message["type"] == "pmessage" for message in found) is expected
    assert bool(json.loads(flower("/api/tasks")[1])) is expected
