"""Counts rejects per project over the last `reject_window` messages, and decides when to shed a project or halt
the reader.

A project that sends malformed messages affects no other project: its rejects become dead letters (or are dropped,
depending on `reject_policy`). If most messages of many projects are rejects at the same time, or if many rejects
name no project, the likely cause is a bad deployment, and the reader halts.

docs/decisions/007-dead-letters-are-a-sink.md, docs/decisions/034-rejects-per-project.md
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ingest.core.limits import Limits, RejectPolicy

# A project is shed when at least this many of its messages in the window are rejects, and these are more than half
# of its messages. Shedding ends when the share falls below a quarter.
SHED_REJECTS_MIN = 10
NAMED_PROJECTS_MAX = 5

UNATTRIBUTED = -1


@dataclass(slots=True)
class ProjectCount:
    """Counts of one project in the window. `project_id` is None for messages without a project."""

    project_id: int | None
    messages: int = 0
    rejects: int = 0
    shed: bool = False

    @property
    def is_mostly_rejected(self) -> bool:
        """True if most of the project's messages were rejected."""
        return self.project_id is not None and 2 * self.rejects > self.messages


class Rejects:
    """The window of recent messages: one number per message, and counts per project."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._window = [0] * limits.reject_window
        self._seen = 0
        self._total = 0
        self._bad = 0
        self._projects: dict[int, ProjectCount] = {}
        self.dropped = 0
        """Rejects dropped by policy since startup."""

    def count(self, project_id: int | None, *, rejected: bool) -> Iterator[ProjectCount]:
        """Counts one message. Yields projects whose shedding starts or ends."""
        key = UNATTRIBUTED if project_id is None else project_id
        slot = self._seen % len(self._window)
        if self._seen >= len(self._window):
            code = self._window[slot]
            former = self._projects[(code >> 1) - 1]
            self._change(former, -1, -(code & 1))
            if former.shed and 4 * former.rejects < max(1, former.messages):
                former.shed = False
                yield former
            if not former.messages:
                del self._projects[(code >> 1) - 1]
        self._window[slot] = (key + 1) << 1 | rejected
        self._seen += 1
        counted = self._projects.get(key)
        if counted is None:
            counted = self._projects[key] = ProjectCount(project_id)
        self._change(counted, 1, rejected)
        if rejected and not counted.shed and counted.is_mostly_rejected and counted.rejects >= SHED_REJECTS_MIN:
            counted.shed = True
            yield counted

    def _change(self, counted: ProjectCount, messages: int, rejects: int) -> None:
        self._bad -= counted.is_mostly_rejected
        counted.messages += messages
        counted.rejects += rejects
        self._total += rejects
        self._bad += counted.is_mostly_rejected

    def drops(self, project_id: int | None) -> bool:
        """Returns True if a reject of this project is dropped instead of becoming a dead letter."""
        if self._limits.reject_policy != RejectPolicy.DROP or project_id is None:
            return False
        counted = self._projects.get(project_id)
        return counted is not None and counted.shed

    def halt_reason(self) -> str | None:
        """Returns the reason to halt the reader, with the projects involved; None if there is none. The result is
        always None until the window is full."""
        if self._seen < len(self._window):
            return None
        limits, size = self._limits, len(self._window)
        without_project = self._projects.get(UNATTRIBUTED)
        unattributed = without_project.rejects if without_project else 0
        if unattributed > limits.reject_unattributed_ratio_max * size:
            return f"{unattributed / size:.0%} of the last {size} messages are rejects that name no project"
        projects = len(self._projects) - (without_project is not None)
        if self._bad >= limits.reject_projects_min and self._bad > limits.reject_ratio_max * projects:
            named = ", ".join(
                str(project.project_id) for project in self.most_rejected_projects() if project.is_mostly_rejected
            )
            return (
                f"most messages of {self._bad} of {projects} projects are rejects, among the last {size} messages "
                f"(projects {named}{', ...' if self._bad > NAMED_PROJECTS_MAX else ''})"
            )
        return None

    def most_rejected_projects(self, count: int = NAMED_PROJECTS_MAX) -> list[ProjectCount]:
        """Returns the projects with the most rejects in the window, at most `count` of them."""
        with_rejects = [
            project for project in self._projects.values() if project.rejects and project.project_id is not None
        ]
        return sorted(with_rejects, key=lambda project: (-project.rejects, project.project_id))[:count]

    @property
    def shed(self) -> int:
        """Number of shed projects."""
        return sum(project.shed for project in self._projects.values())

    @property
    def unattributed(self) -> int:
        """Rejects in the window that name no project."""
        without_project = self._projects.get(UNATTRIBUTED)
        return without_project.rejects if without_project else 0

    @property
    def total(self) -> int:
        """Rejects in the window."""
        return self._total

    @property
    def ratio(self) -> float:
        """Share of rejects in the window, 0 to 1."""
        return self._total / max(1, min(self._seen, len(self._window)))
