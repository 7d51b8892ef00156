"""The generator's manifest and the parser, two independent interpretations of the same messages, agree."""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib
from collections import Counter
from dataclasses import replace

import msgspec

from ingest.core.model import Message, Reject, Segment, TopicPartition
from ingest.core.parse import REASONS, ParseRules, parse
from ingest.local.load.expectation import Expectation, Flags, Named, Total
from ingest.local.load.malformed import MAKERS
from ingest.local.load.manifest import Entry
from ingest.local.load.produce import PROFILES, stream

START = 1_790_000_000
SOURCE = TopicPartition("t", 0)
# The rate is high, so that both sampling decisions occur.
RULES = ParseRules(sample_segment_rate=0.3, sample_event_rate=0.3)


def load(count: int = 400, profile: str = "small") -> tuple[Expectation, list[tuple[Entry, Segment | Reject]]]:
    """The expected results and the parser's results for each message."""
    expected = Expectation(sample_segment_rate=0.3, sample_event_rate=0.3)
    parsed = []
    for offset, made in enumerate(stream(PROFILES[profile], count, 4, START)):
        made.entry.topic, made.entry.partition, made.entry.offset = SOURCE.topic, 0, offset
        expected.add(made.entry)
        timestamp_ms = (START + 60) * 1000
        parsed.append(
            (made.entry, parse(Message(SOURCE, 1, offset, made.value, timestamp_ms=timestamp_ms), RULES))
        )
    return expected, parsed


def test_every_message_is_parsed_or_rejected_as_in_the_manifest():
    """Every message is parsed or rejected as the manifest expects, with the same kind or reason, in both
    profiles.
    """
    for profile, count in (("small", 400), ("demo", 150)):
        for entry, outcome in load(count, profile)[1]:
            if entry.kind == "reject":
                assert isinstance(outcome, Reject), entry.flaw
                assert outcome.reason == entry.reason, entry.flaw
            else:
                assert isinstance(outcome, Segment), (entry.flaw, outcome)
                assert outcome.blobs[0].name == entry.blob


def test_a_clock_changes_only_the_time_of_arrival():
    """With a clock, the receive time of each segment is the clock's time when it is generated, and duplicates
    still have the same bytes. Everything else, including the order, is the same as without a clock, except that
    every segment has a valid replay_event.
    """
    ticks = itertools.count(START + 1000)
    made = list(stream(PROFILES["small"], 200, 4, START, lambda: next(ticks) + 0.5))
    segments = [msgspec.msgpack.decode(one.value) for one in made if one.entry.kind != "reject"]
    small = PROFILES["small"]
    valid = replace(small, mix=replace(small.mix, replay_event_missing=0.0, replay_event_broken=0.0))
    fixed = list(stream(valid, 200, 4, START))

    copies: dict[tuple[str, int], set[bytes]] = {}
    for one in made:
        if one.entry.kind != "reject":
            copies.setdefault((one.entry.replay_id, one.entry.segment_id), set()).add(one.value)
            assert one.entry.value_bytes == len(one.value)
    assert {len(values) for values in copies.values()} == {1}
    assert {one["received"] for one in segments} == set(range(START + 1000, START + 1200))
    assert any(one.entry.duplicate for one in made)
    assert [one.value for one in made if one.entry.kind == "reject"] == [
        one.value for one in fixed if one.entry.kind == "reject"
    ]
    assert [{**one, "received": 0} for one in segments] == [
        {**msgspec.msgpack.decode(one.value), "received": 0} for one in fixed if one.entry.kind != "reject"
    ]


def test_with_a_clock_no_replay_lasts_until_its_arrival():
    """If `stream` is given a clock, no row has the arrival time as its timestamp; otherwise a replay that began
    hours ago would appear to last until now.
    """
    arrived = START + 40_000
    for made in stream(PROFILES["small"], 400, 4, START, lambda: arrived):
        outcome = parse(Message(SOURCE, 1, 0, made.value, timestamp_ms=arrived * 1000), RULES)
        if isinstance(outcome, Segment):
            times = [json.loads(row.json)["timestamp"] for row in outcome.clickhouse if row.table == "replays"]
            assert max(times, default=START) < START + 3600


def test_every_reject_reason_of_a_body_is_generated():
    """The generator builds a message for each reject reason except those that require a message of several
    megabytes or a crash.
    """
    made = {reason for _, reason, _ in MAKERS}

    assert made == set(REASONS) - {"message_too_large", "body_too_large", "parser_failed"}


def test_objects_have_the_bytes_of_the_manifest():
    """Objects have the bytes listed in the manifest: as received, or after decompression if the parser compressed
    them.
    """
    expected, parsed = load()
    for _, outcome in parsed:
        if isinstance(outcome, Segment):
            blob = outcome.blobs[0]
            wanted = expected.objects[blob.name]
            content = bytes(blob.content)
            content = content if wanted.exact else zlib.decompress(content)
            assert hashlib.sha256(content).hexdigest() == wanted.sha256


def test_clicks_taps_and_outcomes_add_up():
    """Clicks, taps and outcomes equal those in the manifest; if a click has two rows, the more severe one counts,
    as in the table.
    """
    expected, parsed = load()
    clicks: dict[Named, Flags] = {}
    taps, outcomes = set(), {}
    for _, outcome in parsed:
        for row in outcome.clickhouse if isinstance(outcome, Segment) else ():
            fields = json.loads(row.json)
            named = (fields["project_id"], row.id)
            if row.table == "replay_outcomes":
                outcomes[named] = fields["category"]
            elif "click_tag" in fields:
                flags = Flags(fields["click_is_dead"], fields["click_is_rage"])
                clicks[named] = max(clicks.get(named, Flags(0, 0)), flags)
            elif "tap_view_id" in fields:
                taps.add(named)

    assert clicks == expected.clicks
    assert taps == expected.taps
    assert outcomes == expected.outcomes


def test_facts_add_up():
    """The number of distinct row ids per event type equals that in the manifest, including those of sampled
    facts.
    """
    expected, parsed = load()
    ids: dict[str, str] = {}
    for _, outcome in parsed:
        for row in outcome.bigquery if isinstance(outcome, Segment) else ():
            ids[row.id] = json.loads(row.json)["event_type"]

    assert Counter(ids.values()) == expected.facts
    assert expected.facts["canvas_size"]
    assert expected.facts["multi_click"]


def test_metrics_add_up():
    """The counts and sums of each metric equal those in the manifest; every message counts, including
    redeliveries.
    """
    expected, parsed = load()
    totals: dict[str, Total] = {}
    for _, outcome in parsed:
        for metric in outcome.metrics if isinstance(outcome, Segment) else ():
            old = totals.get(metric.name, Total(0, 0.0))
            totals[metric.name] = Total(old.count + 1, (old.sum or 0) + metric.value)

    assert totals.keys() == expected.metrics.keys()
    for name, total in expected.metrics.items():
        assert totals[name].count == total.count, name
        assert total.sum is None or totals[name].sum == total.sum, name


def test_an_expectation_of_parsed_messages_is_that_of_the_manifest():
    """An expectation computed from parsed messages equals the manifest, so a topic that is read again can be
    reconciled.
    """
    expected, parsed = load()
    again = Expectation()
    for entry, outcome in parsed:
        again.add_outcome(SOURCE, entry.offset, outcome)

    assert again.objects.keys() == expected.objects.keys()
    for name in ("clicks", "taps", "segments", "outcomes", "facts", "letters", "ends", "messages"):
        assert getattr(again, name) == getattr(expected, name), name
    assert {name: total.count for name, total in again.metrics.items()} == {
        name: total.count for name, total in expected.metrics.items()
    }
