"""Deliberate bugs in the core, each of which replaces text that occurs exactly once.

The bugs are mistakes that a developer could plausibly make, and that would lose, block or repeat data.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One bug, with its description, its file in `ingest/` (or below `tasks/`), and the text before and after."""

    bug: str
    file: str
    before: str
    after: str


LEDGER, PIPELINE, BATCHING = "core/ledger.py", "core/pipeline.py", "core/batching.py"
COMMITS, FLIGHT, PARTITION = "core/commits.py", "core/flight.py", "core/partition.py"
PRESSURE, RETRY, REJECTS = "core/backpressure.py", "core/retry.py", "core/rejects.py"
RECORD, RUNTIME = "core/cut_record.py", "reader/runtime.py"

MUTANTS = (
    Mutant(
        "commits an offset that is one too high",
        LEDGER,
        "line.committable = done.stop",
        "line.committable = done.stop + 1",
    ),
    Mutant(
        "commits the last offset instead of the next one",
        LEDGER,
        "line.committable = done.stop",
        "line.committable = done.stop - 1",
    ),
    Mutant(
        "commits a settled batch before an unsettled one",
        LEDGER,
        "while line.ranges and line.ranges[0] in line.settled:\n            done = line.ranges.popleft()",
        "while line.settled:\n            done = max(line.settled)\n            line.ranges.remove(done)",
    ),
    Mutant(
        "advances over only one settled range",
        LEDGER,
        "while line.ranges and line.ranges[0] in line.settled:",
        "if line.ranges and line.ranges[0] in line.settled:",
    ),
    Mutant(
        "keeps the ledger of a forgotten partition",
        LEDGER,
        "self._lines.pop(source, None)",
        "pass",
    ),
    Mutant(
        "drops a revoked partition without draining it",
        PIPELINE,
        "owned.release_by is not None and (now >= owned.release_by or owned.drained)",
        "owned.release_by is not None",
    ),
    Mutant(
        "drains without a deadline",
        PIPELINE,
        "if owned.release_by is not None and (now >= owned.release_by or owned.drained)",
        "if owned.release_by is not None and owned.drained",
    ),
    Mutant(
        "releases a partition before the response to its last commit",
        PARTITION,
        "return not working and self.commits.idle and committable in (None, self.commits.committed)",
        "return not working",
    ),
    Mutant(
        "cuts batches during a drain",
        PIPELINE,
        "if self.halted is not None or self.stopping_by is not None or owned.release_by is not None:",
        "if self.halted is not None or self.stopping_by is not None:",
    ),
    Mutant(
        "settles a batch when its blobs are durable",
        FLIGHT,
        "if len(self.stages) > 1:",
        "if len(self.stages) > 2:",
    ),
    Mutant(
        "accepts a completion of the wrong stage",
        PIPELINE,
        "if found is None or found[1].stage != event.stage:",
        "if found is None:",
    ),
    Mutant(
        "accepts completions of older epochs",
        PIPELINE,
        "if flight is not None and epoch in (None, flight.batch.epoch):",
        "if flight is not None:",
    ),
    Mutant(
        "accepts messages of older epochs",
        PIPELINE,
        "if owned is None or owned.epoch != event.epoch or event.offset < owned.position:",
        "if owned is None or event.offset < owned.position:",
    ),
    Mutant(
        "takes a message twice",
        PIPELINE,
        "if owned is None or owned.epoch != event.epoch or event.offset < owned.position:",
        "if owned is None or owned.epoch != event.epoch:",
    ),
    Mutant(
        "ignores deadlines",
        PIPELINE,
        "if now >= flight.until and flight.phase is not Phase.WAITING:",
        "if now >= flight.until and flight.phase is Phase.PARKED:",
    ),
    Mutant(
        "never retries a parked batch",
        PIPELINE,
        "if now >= flight.until and flight.phase is not Phase.WAITING:",
        "if now >= flight.until and flight.phase is not Phase.WAITING and flight.phase is not Phase.PARKED:",
    ),
    Mutant(
        "parks a batch on the failure of an older attempt",
        PIPELINE,
        "(flight.phase, flight.stage, flight.attempt) == (Phase.FLUSHING, event.stage, event.attempt)",
        "(flight.phase, flight.stage) == (Phase.FLUSHING, event.stage)",
    ),
    Mutant(
        "parks a batch without showing it",
        PIPELINE,
        "yield flight.show(park, now)\n            yield from self._progress(now)",
        "yield from self._progress(now)",
    ),
    Mutant(
        "never parks a batch without completions",
        PIPELINE,
        "flight.misses += flight.phase is Phase.FLUSHING",
        "flight.misses += flight.phase is Phase.PARKED",
    ),
    Mutant(
        "counts missed deadlines across both stages",
        FLIGHT,
        'self.failures, self.misses, self.error, self.shown = 0, 0, "", None',
        'self.failures, self.error, self.shown = 0, "", None',
    ),
    Mutant(
        "shows a batch as parked after its stage is durable",
        FLIGHT,
        'self.failures, self.misses, self.error, self.shown = 0, 0, "", None',
        'self.failures, self.misses, self.error = 0, 0, ""',
    ),
    Mutant(
        "never renews the lease of a parked batch",
        PIPELINE,
        "if now - self._renewed_at >= self.limits.parked_renew_seconds:",
        "if now < self._renewed_at:",
    ),
    Mutant(
        "ignores the limit on chords in flight",
        PIPELINE,
        "if flight.phase is Phase.WAITING and flushing < self.limits.in_flight_batches_max:",
        "if flight.phase is Phase.WAITING:",
    ),
    Mutant(
        "starts a chord before its cut is recorded",
        PARTITION,
        "Flight(batch, stages, Phase.RECORDING, since=now, until=until)",
        "Flight(batch, stages, Phase.WAITING, since=now, until=until)",
    ),
    Mutant(
        "omits the predecessor's remaining cuts from the record",
        PARTITION,
        "(*(offsets.stop for offsets in pending), *planned)",
        "tuple(offsets.stop for offsets in pending)",
    ),
    Mutant(
        "waits for the response to a record that it never sent",
        PARTITION,
        "            self.unblock_recorded_batches()  # the previous",
        "            pass  # the previous",
    ),
    Mutant(
        "ignores the record of the previous owner",
        PARTITION,
        "found = decode(committed, given.record) if committed is not None else Record()",
        "found = Record()",
    ),
    Mutant(
        "repeats a refused commit immediately",
        COMMITS,
        "            return now - self._refused_at >= interval_seconds",
        "            return True",
    ),
    Mutant(
        "waits indefinitely for the response to a commit",
        COMMITS,
        "and now - self._sent_at >= self._limits.commit_answer_seconds_max:",
        "and now < 0:",
    ),
    Mutant(
        "treats a refused commit as stored",
        COMMITS,
        "        self._refused_at = now\n",
        "        self._refused_at = now\n        self._stored = (event.offset, event.record)\n",
    ),
    Mutant(
        "does not resend a commit that a late commit may have overwritten",
        COMMITS,
        "            self._stored = None",
        "            pass",
    ),
    Mutant(
        "commits for partitions that were lost",
        PIPELINE,
        "            self._forget(source)\n        yield from self._progress(now)",
        "            pass\n        yield from self._progress(now)",
    ),
    Mutant(
        "drops the batches in flight when messages expire",
        PIPELINE,
        "if owned is not None and event.resumed_at >= owned.position:",
        "if owned is not None and event.resumed_at < 0:",
    ),
    Mutant(
        "counts the bytes of settled batches as held",
        PARTITION,
        "        del self.flights[flight.batch.id]\n        self._flights_bytes -= flight.batch.size_bytes",
        "        del self.flights[flight.batch.id]",
    ),
    Mutant(
        "reads a partition without limit while its oldest batch is stuck",
        PIPELINE,
        "if not owned.held and behind >= self.limits.pending_ranges_max:",
        "if not owned.held and behind >= 10**9:",
    ),
    Mutant(
        "never resumes a held partition",
        PIPELINE,
        "            owned.held = False\n            if not self.paused and",
        "            owned.held = False\n            if self.paused and",
    ),
    Mutant(
        "does not pause a newly assigned partition while the reader is paused",
        PIPELINE,
        "        if self.paused:\n            yield do.Pause(tuple(given",
        "        if not self.paused:\n            yield do.Pause(tuple(given",
    ),
    Mutant(
        "stops without flushing the open batch",
        PIPELINE,
        "batch = owned.builder.drain(now) if owned.release_by is None else None",
        "batch = None",
    ),
    Mutant(
        "never halts, whatever the number of rejects",
        REJECTS,
        "if self._seen < len(self._window):",
        "if self._seen >= 0:",
    ),
    Mutant(
        "halts because of the rejects of a single project",
        REJECTS,
        "if self._bad >= limits.reject_projects_min and",
        "if self._bad and",
    ),
    Mutant(
        "halts without making consumed messages durable",
        PIPELINE,
        "batch = owned.builder.halt(now) if owned.release_by is None else None",
        "batch = None",
    ),
    Mutant(
        "drops the rejects of projects that are not shed",
        REJECTS,
        "return counted is not None and counted.shed",
        "return counted is not None",
    ),
    Mutant(
        "retries without a backoff",
        RETRY,
        "2.0 ** min(failures - 1, 30), cap_seconds)",
        "0.01, cap_seconds)",
    ),
    Mutant(
        "never resumes",
        PRESSURE,
        "return BackpressureChange.RESUME",
        "return None",
    ),
    Mutant(
        "resumes at the limit instead of at half of it",
        PRESSURE,
        "if batches <= limits.in_flight_batches_max // 2 and",
        "if batches < limits.in_flight_batches_max and",
    ),
    Mutant(
        "never pauses, never counts bytes",
        PRESSURE,
        "or size_bytes >= limits.in_flight_bytes_max:",
        "or size_bytes < 0:",
    ),
    Mutant(
        "cuts one message late",
        BATCHING,
        "if self._messages >= self._limits.batch_messages_max:",
        "if self._messages > self._limits.batch_messages_max:",
    ),
    Mutant(
        "loses the rejects of a batch",
        BATCHING,
        "self._rejects.append(outcome)",
        "pass",
    ),
    Mutant(
        "cuts a batch after the message that makes it too large to stage",
        BATCHING,
        "if self._messages and self.size_bytes + outcome.size_bytes > self._limits.staged_bytes_max:",
        "if self._messages and self.size_bytes > self._limits.staged_bytes_max:",
    ),
    Mutant(
        "flushes the halves of a batch before their boundary is stored",
        COMMITS,
        "self.recorded_until = min(self.recorded_until, start)",
        "pass",
    ),
    Mutant(
        "accepts fetched messages of a partition that is on hold",
        PIPELINE,
        "return Room.NOW if free and not owned.blocked else Room.LATER",
        "return Room.NOW if free else Room.LATER",
    ),
    Mutant(
        "checks the byte limit only when a batch is cut",
        PIPELINE,
        "elif self._room_bytes <= 0:",
        "elif False:",
    ),
    Mutant(
        "lets messages overtake a message that is parsed outside the loop",
        RUNTIME,
        "return self._kept.has_waiting_items(source) or self.pipeline.is_deferred(source)",
        "return self._kept.has_waiting_items(source)",
    ),
    Mutant(
        "lets the end of an assignment overtake waiting messages",
        RUNTIME,
        "return self._kept.has_waiting_items(source) or self.pipeline.is_deferred(source)",
        "return self.pipeline.is_deferred(source)",
    ),
    Mutant(
        "fetches a partition whose message is parsed outside the loop",
        PIPELINE,
        "for source, owned in self._owned.items() if not owned.blocked))",
        "for source, owned in self._owned.items() if not owned.held))",
    ),
    Mutant(
        "handles a gap in the log before it handles the messages fetched earlier",
        RUNTIME,
        "if isinstance(event, on.OffsetOutOfRange) and self.waits(event.source):",
        "if False:",
    ),
    Mutant(
        "counts a batch's age from its last message",
        BATCHING,
        "        self._stop = offset + 1\n",
        "        self._stop, self._started_at = offset + 1, now\n",
    ),
    Mutant(
        "ends a range at its last offset instead of after it",
        BATCHING,
        "OffsetRange(self._start, self._stop)",
        "OffsetRange(self._start, max(self._start + 1, self._stop - 1))",
    ),
    Mutant(
        "cuts a part of a planned range at shutdown",
        BATCHING,
        "return self._cut(CutReason.DRAIN, now) if self._messages and not self._plan else None",
        "return self._cut(CutReason.DRAIN, now) if self._messages else None",
    ),
    Mutant(
        "waits indefinitely for a planned end",
        BATCHING,
        "if self._waited_seconds >= self._limits.plan_seconds_max:",
        "if self._waited_seconds < 0:",
    ),
    Mutant(
        "abandons a planned range after a fixed time, even if the range was not fetched",
        PIPELINE,
        "if waiting and owned.waiting:",
        "if True:",
    ),
    Mutant(
        "counts the time of a suspended process as waiting time",
        PIPELINE,
        "min(now - self._ticked_at, TICK_SECONDS_MAX)",
        "now - self._ticked_at",
    ),
    Mutant(
        "waits for the rest of the planned ranges that fill the byte limit",
        PIPELINE,
        "max(waiting)[1] if waiting else None",
        "None",
    ),
    Mutant(
        "commits the end of the log past messages in flight",
        LEDGER,
        "if line.ranges or stop <= line.taken_until:",
        "if stop <= line.taken_until:",
    ),
    Mutant(
        "commits the end of the log although earlier messages have not been processed yet",
        PARTITION,
        "self.end.position <= self.position <= self.end.end",
        "self.position <= self.end.end",
    ),
    Mutant(
        "starts an added partition where the reset policy says instead of at its beginning",
        "core/starting.py",
        "StartPosition.BEGINNING if partition >= partitions_at_start else StartPosition.POLICY",
        "StartPosition.POLICY",
    ),
    Mutant(
        "reads a recreated topic from the old offset",
        "core/starting.py",
        "recorded != topic.id",
        "recorded == ''",
    ),
    Mutant(
        "does not count starts",
        "core/starting.py",
        "starts=found.starts + 1",
        "starts=found.starts",
    ),
    Mutant(
        "repeats a record that is too long",
        COMMITS,
        "            self._budget.lower_maximum(event.record)",
        "            pass",
    ),
    Mutant(
        "writes records that are too long for the broker",
        RECORD,
        "length > bytes_max",
        "length > 10 * bytes_max",
    ),
    Mutant(
        "accepts a committed offset without a topic id",
        "core/starting.py",
        "if former and topic.id and former != topic.id:",
        "if former and topic.id and former != topic.id and commit.offset is None:",
    ),
    Mutant(
        "accepts the first response that reports no committed offset",
        "core/starting.py",
        "return stored.offset is None or (stored.offset == 0 and not stored.text)",
        "return stored.offset == 0 and not stored.text",
    ),
    Mutant(
        "never repeats a commit that the broker may have lost",
        COMMITS,
        "if self._stored == (offset, text) and not repeats:",
        "if self._stored == (offset, text):",
    ),
    Mutant(
        "never restarts fetching from a stalled partition",
        "core/stalls.py",
        "                overdue.append(partition)",
        "                pass",
    ),
    Mutant(
        "ignores a partition without an owner",
        "core/ownership.py",
        "        self._since = {}\n        return True",
        "        self._since = {}\n        return False",
    ),
    Mutant(
        "returns from a drain before the partition is released",
        RUNTIME,
        "while self.stopped is None and not self._closing and not self._released.issuperset(sources):",
        "while False:",
    ),
    Mutant(
        "treats an earlier release of a partition as a new release",
        RUNTIME,
        "self._released.difference_update(sources)",
        "pass",
    ),
    Mutant(
        "pauses the partition whose planned range is being completed, when messages of the range expire",
        PIPELINE,
        "if owned.blocked or (self.paused and event.source != self._admitted):",
        "if owned.blocked or self.paused:",
    ),
    Mutant(
        "does not poll while the reader is paused",
        RUNTIME,
        "if self.pipeline.has_room or self.pipeline.paused:",
        "if self.pipeline.has_room:",
    ),
    Mutant(
        "does not tick during a drain",
        RUNTIME,
        "            self._receive_items(wait_seconds=IDLE_SECONDS)\n            self._tick()",
        "            self._receive_items(wait_seconds=IDLE_SECONDS)",
    ),
)
