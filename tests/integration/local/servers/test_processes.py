"""Children are started, watched and stopped, and none survives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ingest.local.servers.processes import Children, LocalError, group_is_alive, wait_until

SLEEP = ["/bin/sh", "-c", "sleep 600 & echo $! && wait"]


def runs(pid: int) -> bool:
    """Returns whether a process exists and is not a zombie. In a container, orphans may never be reaped."""
    result = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return result.stdout.strip()[:1] not in ("", "Z")


def written_number(path: Path) -> int:
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"), 10, f"{path} to be written")
    return int(path.read_text())


def test_a_stop_ends_the_whole_process_group(children: Children):
    """Stopping a child ends its whole process group, including the processes that it started."""
    child = children.start("sleeper", SLEEP)
    grandchild = written_number(child.log_path)

    code = child.stop()

    assert code == -signal.SIGTERM
    wait_until(lambda: not runs(grandchild), 5, "the grandchild to go")


def test_kill_9_of_the_parent_leaves_nothing(tmp_path: Path):
    """After kill -9 of the parent, the child, its own children and the temporary directory are gone."""
    script = textwrap.dedent("""
        import sys, tempfile, time
        from pathlib import Path
        from ingest.local.servers.processes import Children
        children = Children(Path(sys.argv[1]))
        scratch = tempfile.mkdtemp()
        children.remove_at_end(Path(scratch))
        child = children.start("sleeper", ["/bin/sh", "-c", "sleep 600 & echo $! && wait"])
        (Path(sys.argv[1]) / "facts").write_text(f"{child.pid} {scratch} .")
        time.sleep(600)
    """)
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    facts = tmp_path / "facts"
    wait_until(lambda: facts.exists() and facts.read_text().endswith("."), 20, "the parent to start its child")
    child, scratch, _ = facts.read_text().split()
    grandchild = written_number(tmp_path / "sleeper.log")
    assert runs(int(child))

    parent.kill()
    parent.wait()

    wait_until(lambda: not runs(int(child)), 5, "the child to go")
    wait_until(lambda: not runs(grandchild), 5, "the grandchild to go")
    wait_until(lambda: not os.path.exists(scratch), 5, "the directory to go")


def test_a_child_that_ignores_sigterm_is_killed(children: Children):
    """A child that ignores SIGTERM is killed after the grace period, not earlier."""
    child = children.start("stubborn", ["/bin/sh", "-c", "trap '' TERM; echo 1; while :; do sleep 0.05; done"])
    written_number(child.log_path)

    assert child.stop(grace_seconds=0.3) == -signal.SIGKILL


def test_a_supervised_child_is_restarted_when_it_dies(children: Children):
    """A supervised child that dies is restarted, until all children are stopped."""
    child = children.start("kept", ["sleep", "600"], keep=True)
    first = child.pid

    os.kill(first, signal.SIGKILL)

    wait_until(lambda: child.alive and child.pid != first, 10, "the restart")
    children.close()
    assert not child.alive
    assert not group_is_alive(child.pid)


def test_the_error_includes_the_childs_output(children: Children):
    """A wait that times out raises an error that contains the end of the child's log."""
    child = children.start("talker", ["/bin/sh", "-c", "echo the disk is full; sleep 600"])
    wait_until(lambda: "full" in child.log_tail(), 5, "the log")

    with pytest.raises(LocalError, match="the disk is full"):
        child.wait(0.05)


def test_a_missing_program_exits_with_127(children: Children):
    """If a program is missing, its process exits with 127, and the reason is in the log."""
    child = children.start("nothing", ["/does/not/exist"])

    assert child.wait(10) == 127
    assert "/does/not/exist" in child.log_tail()


def test_a_paused_child_does_nothing_until_resumed(children: Children):
    """A child paused with SIGSTOP does nothing until SIGCONT, like a process that hangs without exiting."""
    child = children.start("counter", ["/bin/sh", "-c", "while :; do echo x; sleep 0.01; done"])
    wait_until(lambda: child.log_path.exists() and child.log_path.stat().st_size > 0, 5, "output")

    child.pause()

    def state() -> str:
        result = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(child.pid)], capture_output=True, text=True, check=False
        )
        return result.stdout.strip()[:1]

    wait_until(lambda: state() == "T", 5, "the stop")
    size = child.log_path.stat().st_size
    child.resume()
    wait_until(lambda: child.log_path.stat().st_size > size, 5, "more output")
