"""The tenant gate drops messages of killed projects and of projects that exceed their rate limit; it enforces no
rate limit while the shared token buckets are unavailable.
"""

from __future__ import annotations

import threading

from ingest.core.model import DropReason
from ingest.reader.tenant_gate import Limit, TenantGate, TenantRules

PROJECT, OTHER = 7, 8


def limited_gate(tokens: float, *, burst: float = 10.0, now: float = 0.0) -> TenantGate:
    """Returns a gate with the given number of tokens granted for PROJECT at `now`."""
    gate = TenantGate(stale_seconds=10.0)
    gate.grant(TenantRules(limits={PROJECT: Limit(5.0, burst)}), {PROJECT: tokens}, now)
    return gate


def test_a_killed_project_is_dropped_and_no_other_is():
    gate = TenantGate()
    gate.grant(TenantRules(killed=frozenset({PROJECT})), {}, 0.0)

    assert gate.active
    assert gate.refusal(PROJECT, 1.0) is DropReason.KILLED
    assert gate.refusal(OTHER, 1.0) is None


def test_a_limited_project_is_admitted_as_often_as_it_has_tokens():
    """A message of a project with a rate limit is admitted as long as the project has tokens.

    The next message is dropped but counts as demand.
    """
    gate = limited_gate(2.0)

    assert [gate.refusal(PROJECT, 1.0) for _ in range(3)] == [None, None, DropReason.RATE_LIMITED]
    assert gate.take_wanted_tokens() == {PROJECT: 3}
    assert gate.take_wanted_tokens() == {}


def test_without_the_shared_buckets_everything_is_admitted():
    """If the shared buckets are unavailable, an empty bucket is ignored once its grant is older than
    `stale_seconds`.
    """
    gate = limited_gate(0.0)
    assert gate.refusal(PROJECT, 10.0) is DropReason.RATE_LIMITED

    assert gate.refusal(PROJECT, 10.1) is None


def test_unspent_tokens_are_kept_up_to_one_burst():
    """Unspent tokens are kept up to one burst: with 4 unspent tokens and a burst of 5, a grant of 3 yields 5
    tokens.
    """
    gate = limited_gate(4.0, burst=5.0)

    gate.grant(gate.rules, {PROJECT: 3.0}, 1.0)

    answers = [gate.refusal(PROJECT, 1.0) for _ in range(6)]
    assert answers == [None] * 5 + [DropReason.RATE_LIMITED]


def test_every_message_is_counted_once_while_another_thread_refreshes():
    """While another thread collects the counts, each of 20,000 messages is counted exactly once."""
    gate, taken, done = limited_gate(1e9, burst=1e9), [0], threading.Event()

    def refresh() -> None:
        while not done.is_set():
            taken[0] += gate.take_wanted_tokens().get(PROJECT, 0)

    thread = threading.Thread(target=refresh)
    thread.start()
    for _ in range(20_000):
        gate.refusal(PROJECT, 1.0)
    done.set()
    thread.join()

    assert taken[0] + gate.take_wanted_tokens().get(PROJECT, 0) == 20_000
