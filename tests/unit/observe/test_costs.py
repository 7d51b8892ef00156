"""The costs of a bounded list of projects, plus `none` and `other`, add up to the exact total cost of all
messages.
"""

from __future__ import annotations

import random
import time
from collections import Counter

import msgspec
import pytest

from ingest.core import events as on
from ingest.core.model import Message
from ingest.core.parse import ParseRules
from ingest.local.load.produce import PROFILES, values
from ingest.observe.costs import NONE, OTHER, TRACKED_PROJECTS_MAX, Cost, Costs
from ingest.observe.metrics import Metrics
from ingest.reader.parsing.inline import InlineParser
from ingest.reader.tenant_gate import TenantGate
from ingest.settings import Settings
from ingest.testing.runtime import PARTITION
from tests.kit.batches import reject, segment
from tests.kit.observed_reader import Driver


class Counted:
    """Passes costs to `Costs`, and also adds them up exactly, for comparison.

    `series` contains the value of each metric series, which is the sum of the costs that each tick added to it.
    """

    def __init__(self, listed_max: int = 5) -> None:
        self.costs = Costs(listed_max)
        self.exact: dict[str, Cost] = {}
        self.series: dict[str, Cost] = {}
        self.listed_most = 0

    def add(self, project: int | None, cpu_seconds: float, size_bytes: int = 100, rows: int = 2) -> None:
        self.costs.second[project].add(Cost(cpu_seconds, size_bytes, rows))
        name = NONE if project is None else str(project)
        self.exact.setdefault(name, Cost()).add(Cost(cpu_seconds, size_bytes, rows))

    def tick(self, seconds: float = 1.0) -> None:
        added, _ = self.costs.tick(seconds)
        self.listed_most = max(self.listed_most, len(added))
        for name, cost in added.items():
            self.series.setdefault(name, Cost()).add(cost)


def total(costs: dict[str, Cost]) -> tuple[float, float, float]:
    found = Cost()
    for cost in costs.values():
        found.add(cost)
    return found.cpu_seconds, found.size_bytes, found.rows


def test_the_series_sum_to_an_exact_count_of_thousands_of_projects():
    """For a skewed load over 20,000 projects, the series add up to the exact total cost.

    The list contains the most expensive projects.
    """
    rng = random.Random(1)
    counted = Counted()
    for _ in range(60):
        for _ in range(1000):
            project = min(int(rng.paretovariate(0.8)), 20_000)
            counted.add(project, rng.random() / 1000, rng.randrange(50_000), rng.randrange(20))
        counted.add(None, 0.001)
        counted.tick()

    assert total(counted.series) == pytest.approx(total(counted.exact))
    recent = counted.costs.recent()
    most = sorted(
        (name for name in counted.exact if name != NONE), key=lambda name: -counted.exact[name].cpu_seconds
    )
    assert [cost.project for cost in recent] == [*most[:5], NONE, OTHER]
    assert counted.listed_most <= 5 + 2


def test_the_recent_cost_sums_to_the_rate_of_everything():
    """Under a steady load, the rates of the listed projects, `none` and `other` add up to the rate of the load, to
    within 0.1%.
    """
    counted = Counted()
    for second in range(900):
        for project in range(50):
            counted.add(project + second % 7 * 1000, 0.001 * (project + 1), 1000, 3)
        counted.tick()

    recent = counted.costs.recent()

    assert sum(cost.cpu_seconds for cost in recent) == pytest.approx(0.001 * 50 * 51 / 2, rel=1e-3)
    assert sum(cost.bytes_per_second for cost in recent) == pytest.approx(50 * 1000, rel=1e-3)
    assert sum(cost.rows_per_second for cost in recent) == pytest.approx(50 * 3, rel=1e-3)


def test_new_projects_do_not_displace_an_expensive_one():
    """New projects that send one message each do not displace an expensive project. Memory is bounded."""
    counted = Counted()
    for second in range(30):
        counted.add(7, 0.05)
        for number in range(4000):
            counted.add(1000 + second * 10_000 + number, 0.001)
        counted.tick()

    assert counted.costs.recent()[0].project == "7"
    assert len(counted.costs._recent) <= TRACKED_PROJECTS_MAX + 2
    assert total(counted.series) == pytest.approx(total(counted.exact))


def test_a_project_takes_only_one_place():
    """A project with nearly all of the load takes only one slot and displaces no other project."""
    counted = Counted()
    for _ in range(5):
        for _ in range(10_000):
            counted.add(1, 0.01)
        for project in (2, 3, 4, 5):
            counted.add(project, 0.0001)
        counted.tick()

    assert counted.costs.recent()[0].project == "1"
    assert {cost.project for cost in counted.costs.recent()} == {"1", "2", "3", "4", "5", NONE, OTHER}


def test_similar_projects_do_not_alternate():
    """If two projects with similar costs compete for one slot in the list, they do not keep displacing each other.

    The first project keeps its slot until the second project costs clearly more.
    """
    counted = Counted(listed_max=1)
    names = []
    for second in range(20):
        counted.add(1 + second % 2, 0.01)
        counted.tick()
        names.append(counted.costs.recent()[0].project)
    assert set(names) == {"1"}

    for _ in range(20):
        counted.add(2, 0.05)
        counted.tick()
    assert counted.costs.recent()[0].project == "2"


def test_a_project_that_sends_nothing_is_forgotten():
    """The series of a project is removed after more than an hour without messages."""
    counted = Counted()
    counted.add(1, 0.01)
    counted.tick()

    _, gone = counted.costs.tick(10_000.0)

    assert gone == {"1"}
    assert [cost.project for cost in counted.costs.recent()] == [NONE, OTHER]


def test_the_reader_counts_each_message_once_and_no_other_work():
    """The reader counts each message once, with only the CPU time of its own parsing."""
    driver = Driver(batch_messages_max=1000)
    at = [0.0]
    driver.metrics = Metrics(Settings(cost_projects_max=2), wall_clock=lambda: 0.0, cpu=lambda: at[0])
    driver.metrics.watch(driver.pipeline, driver)
    driver.assign()
    driver.advance(2.0)
    exact: Counter[str] = Counter()
    for number in range(60):
        project = (1, 1, 1, 2, 2, 3)[number % 6]
        spent = {1: 0.001, 2: 0.002, 3: 0.0005}[project]
        at[0] += spent
        offset = driver._offsets.get(PARTITION, 0)
        parsed = msgspec.structs.replace(segment(offset), project_id=project)
        driver.message(reject(offset, project_id=3) if project == 3 else parsed)
        exact[str(project)] += spent
        at[0] += 5.0  # other work
        driver.advance(0.0)
    driver.advance(2.0)

    def series(name: str) -> dict[str, float]:
        return driver.metrics.by_label(f"replays.reader.project_{name}")

    assert series("cpu_seconds") == pytest.approx({"1": exact["1"], "2": exact["2"], OTHER: exact["3"], NONE: 0})
    assert series("rows") == {"1": 60, "2": 40, OTHER: 0, NONE: 0}
    assert sum(series("bytes").values()) == driver.pipeline.held_bytes


def test_the_cpu_of_projects_sums_to_that_of_parsing() -> None:
    """While recordings of several projects are parsed, the series add up to the CPU time of the thread."""
    driver = Driver(batch_messages_max=1_000_000)
    metrics = Metrics(Settings(cost_projects_max=2), wall_clock=lambda: 0.0)
    metrics.watch(driver.pipeline, driver)
    metrics.observe(on.Ticked(), (), 1.0)
    raw = list(values(PROFILES["small"], 300, started_at=1_700_000_000))
    messages = [Message(PARTITION, 1, offset, value) for offset, value in enumerate(raw)]
    parser = InlineParser(ParseRules(), TenantGate(), time.monotonic)

    began = time.thread_time()
    metrics.polled(messages)
    for event in parser.parse(messages):
        assert isinstance(event, on.MessageParsed)
        metrics.observe(event, (), 1.0)
    spent_seconds = time.thread_time() - began
    metrics.observe(on.Ticked(), (), 10.0)

    series = metrics.by_label("replays.reader.project_cpu_seconds")
    assert len(series) == 2 + 2
    assert sum(series.values()) == pytest.approx(spent_seconds, rel=0.05)
