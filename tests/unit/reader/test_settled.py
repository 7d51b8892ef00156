"""A reader reports the operator decision up to which all of its work is settled; an erasure waits for this
report.
"""

from __future__ import annotations

from ingest.core import commands as do
from ingest.reader.erasures import Erasures
from ingest.reader.settled import SettledOffset
from ingest.reader.tenant_gate import TenantGate, TenantRules
from tests.kit.core_reader import reader


def test_a_decision_is_settled_when_all_earlier_messages_are() -> None:
    """A decision that arrives while a batch is in flight is settled together with the batch."""
    runtime, gate = reader(), TenantGate()
    settled = SettledOffset(runtime.pipeline, gate)
    runtime.segments(2)
    (before,) = runtime.dispatches()
    runtime.advance(0.1)
    gate.decide(TenantRules(), Erasures(), 7)
    settled.update_offset(runtime.now)
    runtime.advance(0.1)
    runtime.segments(2)
    (after,) = runtime.dispatches()
    settled.update_offset(runtime.now)
    assert settled.offset == 0

    runtime.flush(before)
    settled.update_offset(runtime.now)

    assert settled.offset == 7
    assert runtime.pipeline.oldest_opened_at == after.batch.opened_at


def test_a_decision_waits_for_an_open_batch() -> None:
    """A decision that arrives while a batch is open waits until the batch has settled."""
    runtime, gate = reader(), TenantGate()
    settled = SettledOffset(runtime.pipeline, gate)
    runtime.segments(1)
    runtime.advance(0.1)
    gate.decide(TenantRules(), Erasures(), 7)
    settled.update_offset(runtime.now)
    assert settled.offset == 0

    runtime.advance(60.0)
    for dispatch in runtime.dispatches():
        runtime.flush(dispatch)
    assert not runtime.take(do.Dispatch)
    settled.update_offset(runtime.now)

    assert settled.offset == 7
