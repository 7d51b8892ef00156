"""The fleet around one staged batch is explored exhaustively, and planted safety bugs are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.planted import explore_copy
from tests.mutation.mutants import Mutant
from tools.explore.hashes import BatchHash, Effect, perform
from tools.explore.search import Search
from tools.explore.staging_model import StagingModel

# These tests take several seconds of CPU time on an idle machine.
pytestmark = pytest.mark.timeout(400)

# One bug per line, with the number of faults that reveal it and a part of its error message.
FOUND = (
    (
        Mutant(
            "takes a task without a mark for a finished one",
            "tasks/staging.py",
            "        if mark is None:\n            return False",
            "        if mark is None:\n            return True",
        ),
        0,
        "durable",
    ),
    (
        Mutant(
            "marks a task before it is written",
            "tasks/run.py",
            "            flush(worker, batch, name, started, permit, watch)\n"
            "            finish(worker, batch, name, task_id, started.content, permit)\n",
            "            finish(worker, batch, name, task_id, started.content, permit)\n"
            "            flush(worker, batch, name, started, permit, watch)\n",
        ),
        0,
        "is marked, but was never written",
    ),
    (
        Mutant(
            "stages without an expiry",
            "tasks/staging.py",
            "        pipe.hdel(key, *stale)\n        pipe.expire(key, self._ttl_seconds)\n",
            "        pipe.hdel(key, *stale)\n",
        ),
        0,
        "never expires",
    ),
    (
        Mutant(
            "reports every chord as done",
            "tasks/staging.py",
            "CompletionKind.FAILED if failure else CompletionKind.DONE",
            "CompletionKind.DONE",
        ),
        1,
        "is reported as durable",
    ),
    (
        Mutant(
            "marks a task whose sink failed",
            "tasks/run.py",
            "        raise RetryLater(str(error), error.retry_after_seconds, progress) from error",
            "        pass",
        ),
        1,
        "is marked, but was never written",
    ),
)


@pytest.mark.parametrize(("faults", "states_min"), [(0, 20), (1, 10_000)])
def test_no_order_of_round_trips_breaks_an_invariant(faults: int, states_min: int) -> None:
    """No order of round trips breaks an invariant, and from every state the batch can become durable and
    settled.
    """
    result = Search(StagingModel(), faults).run()

    assert result.broken == "", "\n".join(result.trace)
    assert result.complete
    assert result.states >= states_min
    assert result.done


@pytest.mark.parametrize(("mutant", "faults", "broken"), FOUND, ids=[line[0].bug for line in FOUND])
def test_a_planted_bug_is_found(tmp_path: Path, mutant: Mutant, faults: int, broken: str) -> None:
    """If a safety bug is planted in the real code of the fleet, some order of round trips reveals the bug."""
    found = explore_copy(mutant, tmp_path, "staging", faults)

    assert found.code == 1, found.broken
    assert broken in found.broken
    assert found.trace[0].strip().startswith("dispatch of blobs")
    assert found.trace[-1] == found.broken
    assert len(found.trace) < 30


def test_an_altered_script_stops_the_explorer() -> None:
    """If the Lua script has changed, the explorer stops, because its translation of the script is outdated."""
    with pytest.raises(KeyError):
        perform(Effect("script", ("return 1", 1, ())), BatchHash())
