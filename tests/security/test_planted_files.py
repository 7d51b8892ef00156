"""Our programs do not write to files or directories that another user of the machine has planted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.local.background import StackState, log_files, start_stack, status, stop_stack
from ingest.local.places import require_own_directory
from ingest.local.servers.processes import LocalError
from ingest.local.stack import Stack
from ingest.settings import Settings
from tests.kit.commands import command
from tests.kit.stored_replays import message, store_replays

REPLAY, PROJECT = "8" * 32, 7
NOBODY_UID = 65534
STACK_CALLS: tuple[Callable[[Path], object], ...] = (start_stack, stop_stack, status, log_files, Stack)


@pytest.mark.parametrize("planted", ["file", "link"])
def test_a_download_is_not_written_into_a_planted_file(
    env: dict[str, str], stored: Settings, tmp_path: Path, planted: str
) -> None:
    """If a world-writable file or a link already has the name of the download, nothing is written to it.

    A new file that only its owner can read replaces the planted file.
    """
    store_replays(stored, [message(REPLAY, 0, [{"type": 5, "timestamp": 1_780_000_000_000}], project_id=PROJECT)])
    place, other = tmp_path / f"{REPLAY}-0000.json", tmp_path / "other"
    other.write_text("kept")
    if planted == "link":
        place.symlink_to(other)
    else:
        place.touch()
        place.chmod(0o666)

    with place.open() as reader:
        result = command(env, "fetch", REPLAY, "--output", str(tmp_path))
        seen_by_earlier_reader = reader.read()

    assert result.code == 0
    assert not place.is_symlink()
    assert place.stat().st_mode & 0o077 == 0
    assert len(json.loads(place.read_text())) == 1
    assert (other.read_text(), seen_by_earlier_reader) == ("kept", "kept" if planted == "link" else "")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([place.name, "other"])


def prepared_directory(folder: Path) -> Path:
    """A directory whose state file looks like that of a running stack, and names this process as its
    supervisor.
    """
    folder.mkdir()
    (folder / "state.json").write_text(StackState(str(folder), os.getpid(), (), {}, {}).to_json())
    (folder / "logs").symlink_to(folder.parent)
    return folder


@pytest.mark.parametrize("call", STACK_CALLS, ids=lambda call: call.__name__)
def test_a_stack_uses_no_directory_that_others_may_change(tmp_path: Path, call: Callable[[Path], object]) -> None:
    """A stack in a directory that other users can write to cannot be started, inspected or stopped, and nothing is
    written.
    """
    folder = prepared_directory(tmp_path / "stack")
    before = sorted(folder.iterdir())
    folder.chmod(0o777)

    with pytest.raises(LocalError, match="other users may change the files"):
        call(folder)

    assert sorted(folder.iterdir()) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("call", STACK_CALLS, ids=lambda call: call.__name__)
def test_a_stack_uses_no_directory_of_another_user(tmp_path: Path, call: Callable[[Path], object]) -> None:
    """A stack in a directory that another user owns cannot be started, inspected or stopped."""
    folder = prepared_directory(tmp_path / "stack")
    os.chown(folder, NOBODY_UID, NOBODY_UID)

    with pytest.raises(LocalError, match="belongs to another user"):
        call(folder)


def test_a_directory_of_the_users_own_group_is_usable(tmp_path: Path) -> None:
    """A directory that is writable by the user's own group, which is usual with umask 002, can be used."""
    folder = tmp_path / "stack"
    folder.mkdir()
    folder.chmod(0o775)

    require_own_directory(folder)
    require_own_directory(tmp_path / "none")
