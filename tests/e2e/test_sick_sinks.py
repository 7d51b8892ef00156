"""A failing sink does not stop the system, which runs as real processes with real servers behind a fault proxy."""

from __future__ import annotations

import base64
import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from redis import Redis

from ingest.local.compare.facts import read_facts
from ingest.local.compare.metrics import read_metrics
from ingest.local.servers.fault_proxy import Errors, Hang, NoFault, Refuse, SeveralErrors
from ingest.local.servers.processes import free_port
from ingest.testing.messages import recording
from tasks.connection import connect
from tasks.coordination import Coordination
from tests.kit.whole_system import System, until

pytestmark = pytest.mark.timeout(240 + float(os.environ.get("SICK_SECONDS", "0")))
QUEUES = ("control,flush.gcs", "flush.clickhouse", "flush.bigquery,flush.datadog,flush.dead_letter")
BOUND = {"in_flight_batches_max": "6"}
SICK_SECONDS = float(os.environ.get("SICK_SECONDS", "0"))
PROBES = 3
PROBE_CPU_SECONDS_MAX = 2.5


def test_a_hanging_sink_fills_a_bounded_backlog_while_the_others_continue(tmp_path: Path) -> None:
    """While ClickHouse hangs, ingestion continues up to the limit on batches in flight, and the reader keeps its
    partitions; afterwards all batches are flushed.

    SICK_SECONDS is the duration of the hang. The default is just long enough to observe everything.
    """
    with System(tmp_path, queues=QUEUES, **BOUND) as system:
        system.load(100, seed=1)
        system.wait_until_committed()
        rebalances = system.metric("replays_reader_rebalances_total")
        healthy = flushed_counts(system)
        began = time.monotonic()
        clickhouse = system.proxies["clickhouse"]
        clickhouse.set(Hang())
        system.load(600, seed=2)

        until(lambda: system.metric("replays_reader_paused") == 1, 90, "the reader to pause")
        until(lambda: system.breaker("clickhouse") == "open", 60, "the breaker to open")
        until(
            lambda: all_increased(healthy, flushed_counts(system)), 60, "the other sinks to take what is in flight"
        )
        stuck_at = system.committed()
        assert stuck_at < sum(system.ends.values())
        assert system.metric("replays_reader_in_flight_batches", phase="flushing") <= 6
        # The bound is the sum of the flushing batches (6), the batches cut from one poll (200 messages, 40 per
        # batch), and one batch per partition that waits for a slot.
        assert system.metric("replays_reader_in_flight_batches") <= 6 + 200 / 40 + 4
        used, held = system.worker_cpu_seconds(), clickhouse.counts["held"]

        def probed() -> bool:
            return clickhouse.counts["held"] >= held + PROBES and time.monotonic() - began >= SICK_SECONDS

        until(probed, 120 + SICK_SECONDS, "the breaker to probe the sink")
        probe_seconds = (system.worker_cpu_seconds() - used) / (clickhouse.counts["held"] - held)
        hung_seconds, at_bound, lag = time.monotonic() - began, flushed_counts(system), system.lag()
        assert probe_seconds < PROBE_CPU_SECONDS_MAX
        assert system.committed() == stuck_at

        system.proxies["clickhouse"].set(NoFault())
        back_at = time.monotonic()
        system.wait_until_committed()
        print(
            f"hung {hung_seconds:.0f} s; objects, facts, metrics {healthy} -> {at_bound}; lag {lag} -> "
            f"{system.lag()} in {time.monotonic() - back_at:.1f} s; {probe_seconds:.2f} s of CPU per probe"
        )
        assert system.metric("replays_reader_rebalances_total") == rebalances
        assert system.metric("replays_reader_poll_gap_seconds_count") > 0
        system.assert_whole()


def test_a_share_of_failing_uploads_parks_nothing(tmp_path: Path) -> None:
    """If 2 % of uploads get 503 and 1 % get 429, only the failed uploads are retried, and no batch is parked."""
    with System(tmp_path) as system:
        system.proxies["gcs"].set(SeveralErrors((Errors(503, 0.02), Errors(429, 0.01, retry_after_seconds=1))))
        system.load(800)

        system.wait_until_committed()

        assert system.metric("replays_reader_batches_parked_total") == 0
        assert system.proxies["gcs"].counts["status 503"] > 0
        assert system.proxies["gcs"].counts["status 429"] > 0
        system.assert_whole()


def attempts(system: System, batch: str) -> int:
    """Returns the number of attempts of a parked batch, or 0 while it is not parked."""
    shown = system.json("batches", "ls")
    return int(shown[batch]["attempt"]) if batch in shown else 0


def test_a_parked_batch_is_retried_from_the_command_line_and_from_flower(tmp_path: Path) -> None:
    """A batch that is parked after its retries is displayed, and an operator's retry runs it at once.

    Once the sink works again, the first success releases the other batches, and the reader commits.
    """
    patience = {"retry_backoff_seconds": "120", "retry_backoff_seconds_max": "600", "task_retries_max": "1"}
    password = "a-long-password"
    port = free_port()
    flower = {"flower_basic_auth": f"op:{password}", "flower_port": str(port)}
    with System(tmp_path, **patience, **flower) as system:
        system.stack.children.start(
            "flower", [sys.executable, "-m", "ingest.cli", "flower"], env=system.env, keep=True
        )
        system.proxies["bigquery"].set(Refuse())
        system.load(60)
        ends = sum(system.ends.values())
        until(lambda: len(system.json("batches", "ls")) >= 2, 90, "batches to be parked")
        parked = sorted(system.json("batches", "ls"))
        shown = system.json("batches", "show", parked[0])
        assert "bigquery" in shown["error"]
        attempt = shown["attempt"]
        assert system.committed() < ends

        first, second, *_ = parked
        system.command("batches", "retry", first, "--by", "test")
        until(lambda: attempts(system, first) > attempt, 90, "the command line's retry to fail as well")
        until(lambda: responds(port), 60, "Flower")
        request = {"args": [second], "kwargs": {"by": "t"}}
        assert flower_call(port, "/api/task/async-apply/retry_batch", request, "") == 401

        system.proxies["bigquery"].set(NoFault())
        until(lambda: system.breaker("bigquery") != "open", 60, "the breaker to half-open")
        assert flower_call(port, "/api/task/async-apply/retry_batch", request, f"op:{password}") == 200

        # The success of this batch shows that the sink works, so the other batches skip their backoff.
        system.wait_until_committed()
        assert system.json("batches", "ls") == {}
        system.assert_whole()


def test_redis_at_its_memory_limit_pauses_the_reader(tmp_path: Path) -> None:
    """If Redis refuses to stage more bytes, the reader pauses, and resumes when memory is available.

    The reader does not crash, and no data is lost.
    """
    with System(tmp_path, in_flight_batches_max="4") as system:
        system.load(60, seed=1)
        system.wait_until_committed()
        server = Redis.from_url(system.settings.redis_url.get_secret_value())
        used = int(server.info("memory")["used_memory"])  # type: ignore[index,arg-type]
        server.config_set("maxmemory", used + 64 * 1024)
        starts = system.reader.starts
        system.load(300, seed=2)

        until(lambda: "redis is nearly full" in system.reader.log_tail(), 60, "the reason in the log")
        until(lambda: system.metric("replays_reader_paused") == 1, 60, "the reader to pause")
        assert system.lag() > 0
        assert system.reader.starts == starts
        server.config_set("maxmemory", 0)

        system.wait_until_committed()
        until(lambda: system.metric("replays_reader_paused") == 0, 60, "the reader to go on")
        assert system.reader.starts == starts
        system.assert_whole()


def test_a_flood_of_one_project_is_shed_by_rule(tmp_path: Path) -> None:
    """The kill switch drops and counts a project's messages.

    Other projects' messages are kept, and offsets advance.
    """
    shed, kept = 11, 12
    with System(tmp_path) as system:
        system.command("tenants", "kill", str(shed), "--yes", "--by", "test")
        assert system.json("tenants", "ls")["killed"] == [shed]

        def dropped() -> bool:
            system.send(recording(project_id=shed))
            return dropped_count(system) > 0

        until(dropped, 60, "the reader to follow the rule")
        system.wait_until_committed()
        before = dropped_count(system)
        for number in range(20):
            system.send(recording(segment_id=number, project_id=shed))
            system.send(recording(segment_id=number, project_id=kept))

        system.wait_until_committed()

        assert dropped_count(system) == before + 20
        assert system.query(f"SELECT count() FROM replay_segments FINAL WHERE project_id = {kept}") == [(20,)]


def dropped_count(system: System) -> float:
    """Returns the number of messages dropped by the kill switch so far."""
    return system.metric("replays_reader_drops_total", reason="killed")


def flushed_counts(system: System) -> tuple[int, int, int]:
    """Returns the numbers of objects in the bucket, facts in BigQuery, and metric values received by the agent."""
    found = objects(system.stack.addresses["gcs"], system.settings.gcs_bucket)
    facts = sum(read_facts(system.settings).values())
    values = sum(total.count for total in read_metrics(system.stack.addresses["statsd_query"]).values())
    return found, facts, values


def all_increased(before: tuple[int, ...], now: tuple[int, ...]) -> bool:
    """Returns whether each of the counts increased."""
    return all(old < new for old, new in zip(before, now, strict=True))


def objects(endpoint: str, bucket: str) -> int:
    """Returns the number of objects in the bucket."""
    with urllib.request.urlopen(f"{endpoint}/storage/v1/b/{bucket}/o?maxResults=10000", timeout=10) as answer:
        return len(json.load(answer).get("items", ()))


def responds(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthcheck", timeout=3) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return True


def flower_call(port: int, path: str, body: dict[str, object], login: str) -> int:
    """Returns the HTTP status of a POST to Flower's API."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    if login:
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_dead_letters_are_listed_shown_and_replayed_once(tmp_path: Path) -> None:
    """Replayed rejects return to their topic with a mark.

    A second replay skips rejects with this mark, and a dry run changes nothing.
    """
    with System(tmp_path) as system:
        made = system.load(150)
        system.wait_until_committed()
        listed = system.json("dlq", "ls")
        assert sum(entry["count"] for entry in listed["counts"]) == made.rejects > 0
        reason = listed["counts"][0]["reason"]
        count = listed["counts"][0]["count"]
        shown = system.json("dlq", "show", listed["letters"][0]["id"])
        assert shown["content"]["reject"]

        dry = system.json("dlq", "replay", "--reason", reason, "--dry-run")
        assert (dry["produced"], dry["failed"]) == (count, [])
        real = system.json("dlq", "replay", "--reason", reason, "--yes", "--by", "test")
        assert (real["produced"], real["failed"]) == (count, [])
        again = system.json("dlq", "replay", "--reason", reason, "--yes")
        assert again["produced"] == 0

        def came_back() -> bool:
            letters = system.json("dlq", "ls", "--reason", reason, "--replayed")["letters"]
            return sum("replayed_from" in letter["headers"] for letter in letters) == count

        until(came_back, 60, "the replayed messages, which are as bad as before, to be dead letters again")
        (action,) = Coordination(connect(system.settings), system.settings).audited(1)
        assert action["what"] == "dlq_replay"
