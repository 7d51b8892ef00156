"""Which projects' messages are shed on purpose: a kill switch, and a token bucket a project.

One project's flood must not become everyone's lag. The rules come from outside (`ingest/reader/tenant_rules.py`
keeps them in Redis, for all readers); this is the arithmetic, and it fails open: no rule, no answer, no shedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

KILLED = "killed"
RATE_LIMITED = "rate_limited"
DROP_REASONS = {
    KILLED: "An operator switched the project off (`replays-ingest tenants kill`).",
    RATE_LIMITED: "The project sent more than its limit (`replays-ingest tenants limit`).",
}


@dataclass(frozen=True, slots=True)
class Limit:
    """A token bucket over all readers: `per_second` tokens a second, at most `burst` at once; one a message."""

    per_second: float
    burst: float


@dataclass(frozen=True, slots=True)
class TenantRules:
    """Projects that are off, and the limits of others."""

    killed: frozenset[int] = frozenset()
    limits: Mapping[int, Limit] = field(default_factory=dict)


class TenantGate:
    """Admits messages of one reader, by tokens that were granted to it from the shared buckets.

    `wanted` counts what each limited project asked for since the last `grant`, so that whoever talks to the
    shared buckets knows how many tokens to fetch. A limited project without a grant yet is admitted (fail
    open), and so is every one of them when the last grant is older than `stale_seconds`.
    """

    def __init__(self, stale_seconds: float = 10.0) -> None:
        self.rules = TenantRules()
        self._stale_seconds = stale_seconds
        self._tokens: dict[int, float] = {}
        self._wanted: dict[int, int] = {}
        self._granted_at: float | None = None

    @property
    def active(self) -> bool:
        """Whether there is any rule at all; without one nobody needs to look at the project."""
        return bool(self.rules.killed or self.rules.limits)

    def refusal(self, project_id: int, now: float) -> str | None:
        """Why this message is to be dropped; None: it is admitted, and its token is taken."""
        if project_id in self.rules.killed:
            return KILLED
        if project_id not in self.rules.limits:
            return None
        self._wanted[project_id] = self._wanted.get(project_id, 0) + 1
        tokens = self._tokens.get(project_id)
        stale = self._granted_at is None or now - self._granted_at > self._stale_seconds
        if tokens is None or stale:
            return None
        if tokens < 1:
            return RATE_LIMITED
        self._tokens[project_id] = tokens - 1
        return None

    def take_wanted(self) -> dict[int, int]:
        """Messages a limited project sent since the last call."""
        wanted, self._wanted = self._wanted, {}
        return wanted

    def grant(self, rules: TenantRules, tokens: Mapping[int, float], now: float) -> None:
        """New rules, and tokens from the shared buckets. Unspent tokens stay, up to one burst."""
        self.rules = rules
        self._tokens = {
            project: min(limit.burst, max(0.0, self._tokens.get(project, 0.0)) + tokens.get(project, 0.0))
            for project, limit in rules.limits.items()
            if project in self._tokens or project in tokens
        }
        self._granted_at = now
