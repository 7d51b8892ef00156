"""Small worlds around the real pipeline are explored exhaustively, and planted safety bugs are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.core import events as on
from ingest.core.pipeline import Pipeline
from tests.kit.planted import explore_copy
from tests.mutation.mutants import MUTANTS
from tools.explore import planted
from tools.explore.__main__ import Bound, bug_as_text, explore, main
from tools.explore.canonical import Canonicalizer
from tools.explore.core_model import LIMITS, CoreModel
from tools.explore.search import Result, Search

# These tests take several seconds even on an idle machine.
pytestmark = pytest.mark.timeout(400)

# Each line lists a planted bug, the smallest world that reveals it (messages per partition; with `expiry`,
# messages may expire), the maximum number of faults, and part of the reported violation.
FOUND = (
    ("commits an offset that is one too high", "2", 0, "it commits 2, but"),
    ("settles a batch when its blobs are durable", "1", 0, "which is not durable"),
    ("loses the rejects of a batch", "2", 0, "which is not durable"),
    ("starts a chord before its cut is recorded", "1", 0, "before that end is stored"),
    ("ignores the record of the previous owner", "2", 1, "recorded ends"),
    ("accepts a completion of the wrong stage", "1", 1, "which is not durable"),
    ("commits for partitions that were lost", "1", 1, "AssertionError"),
    ("accepts messages of older epochs", "2", 1, "is not durable"),
    ("drops the batches in flight when messages expire", "1 expiry", 1, "is not durable"),
    ("never retries a parked batch", "1", 1, "no further order of events"),
)


def searched(messages: tuple[int, ...], faults: int) -> Result:
    return explore(Bound(messages, faults)).result


@pytest.mark.parametrize(
    ("messages", "faults", "states_min"), [((1,), 1, 500), ((2,), 0, 40), ((1, 1), 0, 400)], ids=str
)
def test_no_order_of_events_breaks_an_invariant(messages: tuple[int, ...], faults: int, states_min: int) -> None:
    """No order of events breaks an invariant, and the end can be reached from every state."""
    result = searched(messages, faults)

    assert result.broken == "", "\n".join(result.trace)
    assert result.complete
    assert result.states >= states_min
    assert result.done


def test_a_reader_that_no_other_affects_may_continue_alone() -> None:
    """Without the reduction for independent readers, the world has more states, all of which are valid."""
    every = Search(CoreModel((1,), 1, every_order=True), 1).run()

    assert every.complete, "\n".join(every.trace)
    assert every.states > searched((1,), 1).states


@pytest.mark.parametrize(("bug", "world", "faults", "broken"), FOUND, ids=[line[0] for line in FOUND])
def test_a_planted_bug_is_found(tmp_path: Path, bug: str, world: str, faults: int, broken: str) -> None:
    """If a safety bug is planted in the real pipeline, the explorer finds it and prints the shortest path to the
    bug.
    """
    mutant = next(known for known in MUTANTS if known.bug == bug)
    found = explore_copy(mutant, tmp_path, world.split()[0], faults, expiry="expiry" in world)

    assert found.code == 1, found.broken
    assert broken in found.broken
    assert "is assigned p0" in found.trace[0]
    assert found.trace[-1] == found.broken
    assert len(found.trace) < 40


def test_the_copy_without_a_bug_passes(tmp_path: Path) -> None:
    """The copy without a bug passes, so a failure of a copy with a bug is caused by that bug."""
    assert explore_copy(None, tmp_path, "2", 0).code == 0


def test_messages_may_expire() -> None:
    """Messages that expire after a reader has taken them must still be written.

    Messages that expire before a reader has taken them need not be written.
    """
    expiring = explore(Bound((1,), 1, expiry=True)).result

    assert expiring.complete, "\n".join(expiring.trace)
    assert expiring.states > searched((1,), 1).states


def test_each_state_of_a_pipeline_has_an_image_with_the_partitions_exchanged() -> None:
    """Swapping the partitions of a pipeline twice returns the original state.

    A pipeline with swapped partitions makes the same decisions about the other partition.
    """
    model = CoreModel((1, 1), 0)
    assert Search(model).run().complete
    cores = model.readers.cores

    for core in range(len(cores)):
        image = cores.mirrored(core)
        assert cores.mirrored(image) == core
        taken = [cores.taken_until(core, partition.source) for partition in model.readers.partitions]
        assert (
            taken == [cores.taken_until(image, partition.source) for partition in model.readers.partitions][::-1]
        )


def test_a_bound_is_printed_with_its_size_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    """The description of the world and the number of explored states are printed. No progress is printed, because
    the output is not a terminal.
    """
    assert main(["--world", "1", "--faults", "0"]) == 0

    output = capsys.readouterr()
    assert output.out.startswith("core: 1 partition(s) with 1 message(s), 2 readers, 0 fault(s): ")
    assert " states, " in output.out
    assert output.out.count("; complete") == 1
    assert output.err == ""


@pytest.mark.parametrize("text", ["0", "5", "2+5", "1+1+1", "two"])
def test_an_unsupported_world_is_refused(text: str) -> None:
    """The command refuses an invalid name of a world, such as one with more than four messages per partition."""
    with pytest.raises(SystemExit):
        main(["--world", text])


def test_an_unclassified_float_stops_the_explorer() -> None:
    """The explorer fails on a float attribute that is not classified, because an absolute time would make every
    state look new.
    """
    pipeline = Pipeline(LIMITS)
    pipeline.looked_at = 3.0  # type: ignore[attr-defined]

    with pytest.raises(TypeError, match="looked_at"):
        Canonicalizer().value(pipeline, 10.0)


def test_a_copied_pipeline_is_independent_and_in_the_same_state() -> None:
    """A copied pipeline starts in the same state, and its decisions leave the original unchanged."""
    canonicalizer, pipeline = Canonicalizer(), Pipeline(LIMITS)
    copied = canonicalizer.unpack(canonicalizer.pack(pipeline))
    before = canonicalizer.value(pipeline, 10.0)

    assert canonicalizer.value(copied, 10.0) == before
    copied.handle(on.ShutdownRequested(), 10.0)
    assert canonicalizer.value(copied, 10.0) != before
    assert canonicalizer.value(pipeline, 10.0) == before


def test_a_planted_bug_is_printed_with_its_steps() -> None:
    """For a planted bug, `make explore` prints the bug, its location, and the steps that reproduce it."""
    bug = planted.BUGS[1]
    found = planted.found(bug)

    lines = bug_as_text(bug, found).splitlines()
    assert lines[0] == f"planted: {bug.name} ({bug.file}): found in {len(found.trace) - 1} lines"
    assert lines[-1].strip() == "it settles [0, 1), which is not durable"
    assert "NOT FOUND" in bug_as_text(bug, planted.ExplorationResult(0, "", ()))


def test_every_planted_bug_applies_to_the_code(tmp_path: Path) -> None:
    """The run stops if the text of a planted bug no longer exists in the code."""
    planted.copy(tmp_path)
    for bug in planted.BUGS:
        former = (tmp_path / bug.file).read_text()
        planted.plant(bug, tmp_path)
        if bug is not planted.BUGS[1]:
            (tmp_path / bug.file).write_text(former)

    with pytest.raises(planted.OutdatedPatch, match="settles a batch"):
        planted.plant(planted.BUGS[1], tmp_path)
