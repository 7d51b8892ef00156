"""The stack as a whole: all components start in seconds, settings point to them, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ingest.local import background
from ingest.local import stack as stacks
from ingest.local.servers.processes import LocalError, group_is_alive, is_listening, wait_until
from ingest.local.stack import PARTS, Stack
from ingest.settings import Settings


def test_all_components_start_together_and_leave_nothing():
    """All components start together, with one line of progress each, and after the stack has stopped, no
    process and no directory remain.
    """
    lines: list[str] = []
    with Stack(progress=lines.append, environ={}) as stack:
        stack.start()
        pids = [part.pid for part in stack.parts.values()]
        assert set(stack.addresses) == {*PARTS, "statsd_query", "bigquery_storage"}

    assert len(lines) == len(PARTS)
    assert not any(group_is_alive(pid) for pid in pids)
    assert not stack.directory.exists()


def test_its_settings_are_settings_of_the_system(monkeypatch: pytest.MonkeyPatch):
    """The system reads every variable that the stack sets, and the values are valid."""
    with Stack(environ={}) as stack:
        stack.start(["redis", "statsd"])
        found = stack.settings()
    for name, value in found.items():
        monkeypatch.setenv(name, value)

    settings = Settings()

    assert settings.redis_url.get_secret_value() == found["REPLAYS_REDIS_URL"]
    assert settings.datadog_port == int(found["REPLAYS_DATADOG_PORT"])
    names = {name.removeprefix("REPLAYS_").lower() for part in PARTS for name in stacks.settings_of(part, "h:1")}
    assert names <= set(Settings.model_fields)
    assert {name.removeprefix("REPLAYS_").lower() for name in stacks.TANSU_SETTINGS} <= set(Settings.model_fields)


def test_a_component_can_be_a_real_server():
    """If the environment names a server, the stack uses it instead of starting one; `cloud` means Google Cloud
    itself.
    """
    environ = {"REPLAYS_LOCAL_REDIS": "redis://elsewhere:6379/1", "REPLAYS_LOCAL_GCS": "cloud"}
    with Stack(environ=environ) as stack:
        stack.start(["redis", "gcs"])

        assert stack.settings() == {"REPLAYS_REDIS_URL": "redis://elsewhere:6379/1", "REPLAYS_GCS_ENDPOINT": ""}
        assert stack.parts["redis"].pid == 0


def test_an_unknown_component_is_refused():
    """The name of an unknown component is refused, and the error lists the valid names."""
    with Stack(environ={}) as stack, pytest.raises(LocalError, match="kafka, redis"):
        stack.start(["postgres"])


def test_a_component_that_does_not_start_shows_its_log(tmp_path: Path):
    """If ClickHouse cannot start because its data directory is a file, the error contains its log."""
    (tmp_path / "clickhouse").mkdir()
    (tmp_path / "clickhouse" / "data").write_text("in the way")
    with Stack(tmp_path, environ={}) as stack, pytest.raises(LocalError, match=r"(?s)clickhouse ended.*end of"):
        stack.start(["clickhouse"])


def test_a_background_stack_runs_until_down(tmp_path: Path):
    """`up` returns when every server is ready, a second `up` finds the running stack, and `down` keeps the
    data.
    """
    state = background.start_stack(tmp_path, parts=["redis", "statsd"])

    assert background.start_stack(tmp_path, parts=["redis"]) == background.status(tmp_path)
    port = int(state.settings["REPLAYS_REDIS_URL"].rsplit(":", 1)[1].split("/")[0])
    assert is_listening(port)
    assert "export REPLAYS_REDIS_URL=" in state.exports()
    assert background.stop_stack(tmp_path)
    assert background.status(tmp_path) is None
    assert not is_listening(port)
    assert not background.stop_stack(tmp_path)

    again = background.start_stack(tmp_path, parts=["redis"])
    assert again.settings["REPLAYS_REDIS_URL"] == state.settings["REPLAYS_REDIS_URL"]
    assert background.stop_stack(tmp_path)


def test_the_files_of_a_background_stack_are_private(tmp_path: Path):
    """The files of a background stack are private, even if the user's umask makes new files accessible to
    everyone.
    """
    place = tmp_path / "new" / "stack"
    before = os.umask(0)
    try:
        background.start_stack(place, parts=["redis", "gcs", "clickhouse", "statsd"])
    finally:
        os.umask(before)
    try:
        found = {path: path.stat().st_mode & 0o777 for path in (place.parent, place, *place.rglob("*"))}
    finally:
        background.stop_stack(place)

    assert {path: oct(mode) for path, mode in found.items() if mode & 0o077} == {}
    assert place / "state.json" in found


def test_the_files_of_an_older_background_stack_become_private(tmp_path: Path):
    """A folder that others can read, as created by older releases, becomes private when the stack starts again."""
    background.start_stack(tmp_path, parts=["statsd"])
    background.stop_stack(tmp_path)
    tmp_path.chmod(0o755)

    background.start_stack(tmp_path, parts=["statsd"])
    background.stop_stack(tmp_path)

    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_a_background_stack_restarts_servers_and_stops_as_a_whole(tmp_path: Path):
    """A killed server is restarted at the same address.

    If the supervisor is killed, everything stops, and `up` works again.
    """
    state = background.start_stack(tmp_path, parts=["redis"])
    port = int(state.settings["REPLAYS_REDIS_URL"].rsplit(":", 1)[1].split("/")[0])

    os.kill(state.parts[0].pid, signal.SIGKILL)
    wait_until(lambda: not group_is_alive(state.parts[0].pid) and is_listening(port), 10, "Redis to come back")

    os.kill(state.pid, signal.SIGKILL)
    wait_until(lambda: not is_listening(port), 10, "Redis to go with its supervisor")
    # The kernel may close the watchdog's pipe, which stops Redis, before it releases the supervisor's lock.
    wait_until(lambda: background.status(tmp_path) is None, 10, "the lock of the killed supervisor to go")
    background.start_stack(tmp_path, parts=["redis"])
    assert background.stop_stack(tmp_path)


def has_ended(pid: str) -> bool:
    """An orphan is reaped by the process that adopted it. Until then the orphan is a zombie and keeps its pid."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True, check=False).stdout
    return state.strip()[:1] in ("", "Z")


def test_a_kill_9_of_a_program_with_a_stack_leaves_nothing(tmp_path: Path):
    """A killed program, such as the demo, leaves no server and no directory behind."""
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from ingest.local.stack import Stack
        with Stack() as stack:
            stack.start()
            pids = " ".join(str(part.pid) for part in stack.parts.values())
            Path(sys.argv[1]).write_text(f"{stack.directory} {pids} .")
            time.sleep(600)
    """)
    facts = tmp_path / "facts"
    program = subprocess.Popen([sys.executable, "-c", script, str(facts)])
    wait_until(lambda: facts.exists() and facts.read_text().endswith("."), 60, "the stack")
    directory, *pids, _ = facts.read_text().split()

    program.kill()
    program.wait()

    wait_until(lambda: not Path(directory).exists(), 10, "the directory to go")
    for pid in pids:
        wait_until(lambda pid=pid: has_ended(pid), 10, f"process {pid} to end")
    assert len(pids) == len(PARTS)
