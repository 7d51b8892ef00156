"""Tests examples of what the explorer's oracle accepts and refuses."""

from __future__ import annotations

from tools.explore import oracle

LOG = oracle.Log(tuple(oracle.Message(offset, 1 << 2 * offset, 2 << 2 * offset) for offset in range(3)), 3)
NOTHING: frozenset[int] = frozenset()
ALL = LOG.needed(0, 3)


def test_a_commit_past_what_is_not_durable_is_refused() -> None:
    """A commit past messages whose rows or blobs are not durable is refused."""
    stored = oracle.Commits(0, "")
    blobs = LOG.blobs(0, 3)

    assert not oracle.commit(LOG, stored, ALL, oracle.Commits(3, ""), NOTHING, owner=True)
    assert "not durable" in oracle.commit(LOG, stored, blobs, oracle.Commits(3, ""), NOTHING, owner=True)
    assert "ends at 3" in oracle.commit(LOG, stored, ALL, oracle.Commits(4, ""), NOTHING, owner=True)


def test_a_recorded_range_is_only_cut_again_into_halves() -> None:
    """A recorded range may only be cut as recorded, or into the halves of a split batch; any other cut would
    assign its messages to a second batch.
    """
    stored, new = oracle.Commits(0, "2;c=2"), oracle.Commits(0, "2;c=1,1")

    assert "within the recorded ends" in oracle.commit(LOG, stored, 0, new, NOTHING, owner=True)
    assert not oracle.commit(LOG, stored, 0, new, frozenset({1}), owner=True)
    assert not oracle.commit(LOG, stored, 0, oracle.Commits(0, "2;c=2,1"), NOTHING, owner=True)
    assert "lacks" in oracle.commit(LOG, stored, 0, oracle.Commits(0, "2;c=3"), NOTHING, owner=True)


def test_a_new_batch_starts_when_its_end_is_stored() -> None:
    """A new batch may start once the broker has stored the offset at which the batch ends. After one tick, the
    batch may start even if that offset is not stored.
    """
    batch = oracle.Batch(0, 2, rows=False, first=True, fresh=True, halved=False)

    assert "before that end is stored" in oracle.dispatch(LOG, oracle.Commits(0, ""), 0, batch, owner=True)
    assert not oracle.dispatch(LOG, oracle.Commits(0, "2;c=2"), 0, batch, owner=True)
    assert not oracle.dispatch(LOG, oracle.Commits(0, ""), 0, batch._replace(fresh=False), owner=True)
