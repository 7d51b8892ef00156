"""Which messages are dropped on purpose: a kill switch and a token bucket per project, and what was erased.

One project's flood must not become everyone's lag. The gate stands in front of the parser, so that nothing is
inflated for a message that is dropped; the core receives the drop as the message's outcome. The rules come from
`ingest.reader.tenant_rules`, which follows operators' decisions. Without an answer from Redis no limit holds; kill
switches and erasures do.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from ingest.core.model import Drop, DropReason, Outcome, Reject
from ingest.core.parse.envelope import identity_of
from ingest.reader.erasures import Erasures


@dataclass(frozen=True, slots=True)
class Limit:
    """A token bucket over all readers: `per_second` tokens per second, at most `burst` kept; one per message."""

    per_second: float
    burst: float


@dataclass(frozen=True, slots=True)
class TenantRules:
    """Projects that are off, and the limits of others."""

    killed: frozenset[int] = frozenset()
    limits: Mapping[int, Limit] = field(default_factory=dict)


class TenantGate:
    """Admits messages of one reader, by tokens that were granted to it from the shared buckets.

    The loop's thread asks, another one refreshes; a lock keeps their counts exact. A limited project without a
    grant yet is admitted, and so is every one of them when the last grant is older than `stale_seconds`. Times are
    monotonic seconds.
    """

    def __init__(self, stale_seconds: float = 10.0) -> None:
        self.rules = TenantRules()
        self.erasures = Erasures()
        self.decided_until = 0
        """The offset after the last decision that is in force here."""
        self._stale_seconds = stale_seconds
        self._tokens: dict[int, float] = {}
        self._wanted: dict[int, int] = {}
        self._granted_at: float | None = None
        self._lock = threading.Lock()

    @property
    def active(self) -> bool:
        """Whether there is any rule at all; without one nobody needs to look at the message."""
        return bool(self.rules.killed or self.rules.limits or self.erasures)

    @property
    def limited(self) -> frozenset[int]:
        """Projects that were granted tokens, however few."""
        with self._lock:
            return frozenset(self._tokens)

    def decide(self, rules: TenantRules, erasures: Erasures, decided_until: int) -> None:
        """Replaces the rules and erasures by those that hold at this offset of the decisions. Tokens stay."""
        self.rules, self.erasures = rules, erasures
        self.decided_until = decided_until

    def screened(self, outcome: Outcome) -> Outcome:
        """What may be made of a parsed message: the drop, where its user or, while it was parsed, its replay was
        erased. The last look before it is batched, whichever way it was parsed."""
        erasures = self.erasures
        if not erasures or isinstance(outcome, Drop):
            return outcome
        if isinstance(outcome, Reject):
            identity = identity_of(outcome.value)
            held = identity is not None and erasures.holds(*identity)
            return Drop(DropReason.ERASED, identity[0]) if identity is not None and held else outcome
        held = erasures.holds(outcome.project_id, outcome.replay_id, outcome.received)
        return Drop(DropReason.ERASED, outcome.project_id) if held or erasures.holds_user_of(outcome) else outcome

    def refusal(self, project_id: int, now: float) -> DropReason | None:
        """Why this message is to be dropped; None: it is admitted, and its token is taken."""
        if project_id in self.rules.killed:
            return DropReason.KILLED
        if project_id not in self.rules.limits:
            return None
        with self._lock:
            self._wanted[project_id] = self._wanted.get(project_id, 0) + 1
            tokens = self._tokens.get(project_id)
            stale = self._granted_at is None or now - self._granted_at > self._stale_seconds
            if tokens is None or stale:
                return None
            if tokens < 1:
                return DropReason.RATE_LIMITED
            self._tokens[project_id] = tokens - 1
        return None

    def take_wanted(self) -> dict[int, int]:
        """Messages that each limited project sent since the last call: how many tokens to fetch for it."""
        with self._lock:
            wanted, self._wanted = self._wanted, {}
        return wanted

    def grant(self, rules: TenantRules, tokens: Mapping[int, float], now: float) -> None:
        """Replaces the rules and adds tokens from the shared buckets. Unspent tokens stay, up to one burst."""
        with self._lock:
            self.rules = rules
            self._tokens = {
                project: min(limit.burst, max(0.0, self._tokens.get(project, 0.0)) + tokens.get(project, 0.0))
                for project, limit in rules.limits.items()
                if project in self._tokens or project in tokens
            }
            self._granted_at = now
