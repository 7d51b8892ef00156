"""Decides which messages are dropped, by a kill switch and a token bucket per project, and by erasures.

The gate runs before the parser, so that dropped messages are not decompressed; the core receives the drop as the
message's outcome. The rules come from `ingest.reader.tenant_rules`. If Redis is unreachable, kill switches and
erasures are still enforced, but limits are not.
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
    """A token bucket shared by all readers. A message takes one token; `per_second` tokens are added per second,
    up to `burst`."""

    per_second: float
    burst: float


@dataclass(frozen=True, slots=True)
class TenantRules:
    """Disabled projects, and the limits of other projects."""

    killed: frozenset[int] = frozenset()
    limits: Mapping[int, Limit] = field(default_factory=dict)


class TenantGate:
    """Admits messages of one reader, using tokens granted to it from the shared buckets.

    The loop's thread uses the gate while another thread refreshes it; a lock protects the state. Messages of
    limited projects without a grant are admitted, as are all messages if the last grant is older than
    `stale_seconds`. Times are monotonic seconds.
    """

    def __init__(self, stale_seconds: float = 10.0) -> None:
        self.rules = TenantRules()
        self.erasures = Erasures()
        self.decided_until = 0
        """The offset after the last decision that was applied."""
        self._stale_seconds = stale_seconds
        self._tokens: dict[int, float] = {}
        self._wanted: dict[int, int] = {}
        self._granted_at: float | None = None
        self._lock = threading.Lock()

    @property
    def active(self) -> bool:
        """True if any rule or erasure is in force; otherwise messages need not be inspected."""
        return bool(self.rules.killed or self.rules.limits or self.erasures)

    @property
    def limited(self) -> frozenset[int]:
        """Projects with granted tokens."""
        with self._lock:
            return frozenset(self._tokens)

    def decide(self, rules: TenantRules, erasures: Erasures, decided_until: int) -> None:
        """Replaces rules and erasures with those in force at this offset of the operators' topic. Tokens are
        kept."""
        self.rules, self.erasures = rules, erasures
        self.decided_until = decided_until

    def screened(self, outcome: Outcome) -> Outcome:
        """Checks a parsed message before it is batched. Returns a drop if the message's user was erased, or if its
        replay was erased during parsing."""
        erasures = self.erasures
        if not erasures or isinstance(outcome, Drop):
            return outcome
        if isinstance(outcome, Reject):
            identity = identity_of(outcome.value)
            held = identity is not None and erasures.covers(*identity)
            return Drop(DropReason.ERASED, identity[0]) if identity is not None and held else outcome
        held = erasures.covers(outcome.project_id, outcome.replay_id, outcome.received)
        return Drop(DropReason.ERASED, outcome.project_id) if held or erasures.covers_user_of(outcome) else outcome

    def refusal(self, project_id: int, now: float) -> DropReason | None:
        """Returns the reason to drop a message of this project; None if the message is admitted, which takes a
        token."""
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

    def take_wanted_tokens(self) -> dict[int, int]:
        """Returns the number of messages of each limited project since the last call, which is the number of
        tokens to fetch."""
        with self._lock:
            wanted, self._wanted = self._wanted, {}
        return wanted

    def grant(self, rules: TenantRules, tokens: Mapping[int, float], now: float) -> None:
        """Replaces the rules and adds tokens from the shared buckets. Unused tokens are kept, up to one burst."""
        with self._lock:
            self.rules = rules
            self._tokens = {
                project: min(limit.burst, max(0.0, self._tokens.get(project, 0.0)) + tokens.get(project, 0.0))
                for project, limit in rules.limits.items()
                if project in self._tokens or project in tokens
            }
            self._granted_at = now
