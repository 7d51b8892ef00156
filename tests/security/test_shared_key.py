"""Attacks by a client that can write to Redis but lacks the shared key, and tries to commit offsets or hide rows.

Each attack is carried out twice. Without a shared key, the attack succeeds, which shows that the attack is real.
With a shared key, the forged entries are ignored.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Stage
from ingest.local.servers.processes import wait_until
from ingest.reader.encoding import Encoder
from ingest.settings import Settings
from tasks import chord
from tasks.coordination import Coordination
from tasks.kafka.decisions import Decision
from tasks.operate import NotParked, retry
from tasks.operators import DecisionCopy
from tasks.seals import Purpose
from tasks.staging import Forged, Staging
from tasks.wire import (
    MANIFEST,
    ChordName,
    Completion,
    CompletionKind,
    Manifest,
    done_field,
    reader_stream,
    reference,
)
from tests.kit.batches import make_batch
from tests.kit.eager_fleet import EagerFleet

KEY = "a-shared-key-of-these-tests-0123456789"
READER = "eager-reader"
CLICKHOUSE = "rows/clickhouse/0"
SEALED = pytest.mark.parametrize("sealed", [False, True], ids=["without a key", "with a key"])


@pytest.fixture
def sealed() -> bool:
    """True if a shared key is set. SEALED overrides this."""
    return True


@pytest.fixture(autouse=True)
def _key(sealed: bool | str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets the key before anything reads the settings.

    If `sealed` is a string, it is the policy for unsealed entries.
    """
    if sealed:
        monkeypatch.setenv("REPLAYS_SHARED_KEY", KEY)
    if isinstance(sealed, str):
        monkeypatch.setenv("REPLAYS_SHARED_KEY_UNSEALED", sealed)


class IgnoredEntries:
    """Records the purpose of each ignored entry."""

    def __init__(self) -> None:
        self.purposes: list[Purpose] = []

    def __call__(self, purpose: Purpose) -> None:
        self.purposes.append(purpose)


def stage_rows(eager: EagerFleet, noted: IgnoredEntries | None = None) -> tuple[Staging, Manifest, ChordName]:
    """Stages the rows of a batch as a reader would. Returns the staging, the manifest and the chord's name."""
    settings = eager.settings
    encoder = Encoder(settings.sinks, settings.blobs_per_task, READER, seals=settings.seals)
    batch = make_batch(messages=3)
    manifest = encoder.encode(batch).manifest
    tasks = [entry.name for entry in manifest.of_stage(Stage.ROWS)]
    name = ChordName(reference(manifest), Stage.ROWS, 1, chord.new_token())
    staging = Staging(eager.client, settings, noted or IgnoredEntries())
    staging.stage(manifest, name, encoder.payloads(batch, Stage.ROWS, tasks))
    return staging, manifest, name


def forge_completion(eager: EagerFleet, batch_id: str, stage: Stage, reader: str = READER) -> None:
    """Forges a completion with one XADD."""
    completion = Completion(CompletionKind.DONE, batch_id, 1, stage, 1)
    eager.client.xadd(reader_stream(reader), {"c": msgspec.json.encode(completion)})


@SEALED
def test_forged_completions_commit_no_offset_past_unwritten_rows(eager: EagerFleet, sealed: bool):
    """The reader accepts only the completion that its workers wrote, so a forged completion commits no offset."""
    forged, real = make_batch(start=100), make_batch()
    for stage in Stage:
        forge_completion(eager, forged.id, stage)

    event = eager.settle(real)

    genuine = on.FlushSucceeded(real.id, 1, Stage.ROWS)
    assert event == genuine if sealed else event == on.FlushSucceeded(forged.id, 1, Stage.BLOBS)


def test_an_entry_copied_from_another_reader_is_ignored(eager: EagerFleet):
    """A sealed completion that was copied from another reader's stream is ignored."""
    Coordination(eager.client, eager.settings).send_completion(
        "other", Completion(CompletionKind.DONE, "t-0-0-9", 1, "rows", 1)
    )
    ((_, fields),) = eager.client.xrange(reader_stream("other"))
    eager.client.xadd(reader_stream(READER), fields)
    batch = make_batch()

    assert eager.settle(batch) == on.FlushSucceeded(batch.id, 1, Stage.ROWS)


def marks_of_another_task(eager: EagerFleet) -> bytes:
    """Returns a genuine done mark from another batch's task."""
    other = make_batch(start=500)
    assert isinstance(eager.settle(other), on.FlushSucceeded)
    ((key,),) = [eager.client.keys("replays:batch:*")]
    mark = eager.client.hget(key, done_field(CLICKHOUSE))
    eager.sink("clickhouse").rows.clear()
    return bytes(mark)


@SEALED
@pytest.mark.parametrize(
    "mark", [b"1", b"0" * 64, b"", None], ids=["as before", "a seal's form", "empty", "copied"]
)
def test_a_forged_mark_does_not_replace_a_write(eager: EagerFleet, sealed: bool, mark: bytes | None):
    """If a mark is forged before the reader checks which tasks are left, the task is still run."""
    mark = marks_of_another_task(eager) if mark is None else mark
    batch = make_batch(messages=3)
    encoder = Encoder(eager.settings.sinks, eager.settings.blobs_per_task, READER)
    key = Staging(eager.client, eager.settings).key(reference(encoder.encode(batch).manifest))
    eager.client.hset(key, done_field(CLICKHOUSE), mark)

    assert eager.settle(batch) == on.FlushSucceeded(batch.id, 1, Stage.ROWS)

    assert len(eager.sink("clickhouse").rows) == (3 if sealed else 0)


@SEALED
def test_a_mark_that_is_forged_after_staging_ends_no_task_and_no_chord(eager: EagerFleet, sealed: bool):
    """If a mark is forged after staging, no worker skips its task, and the stage is not reported as done."""
    noted = IgnoredEntries()
    staging, manifest, name = stage_rows(eager, noted)
    for entry in manifest.of_stage(Stage.ROWS):
        eager.client.hset(staging.key(name.batch), done_field(entry.name), "1")

    begun = staging.begin(name.batch, CLICKHOUSE, "task-1")
    report = staging.report(name, unexplained="has no mark")

    assert (begun is None) is not sealed
    assert report is not None
    assert report.completion.kind is (CompletionKind.FAILED if sealed else CompletionKind.DONE)
    assert set(noted.purposes) == ({Purpose.MARK} if sealed else set())


@SEALED
def test_altered_bytes_reach_no_sink(eager: EagerFleet, sealed: bool):
    """Altered bytes reach no sink, because the worker hashes the received bytes before it writes."""
    from tasks.celery import app

    staging, _, name = stage_rows(eager)
    encoder = Encoder(eager.settings.sinks, eager.settings.blobs_per_task, READER)
    forged = encoder.payloads(make_batch(messages=1, start=900), Stage.ROWS, [CLICKHOUSE])
    eager.client.hset(staging.key(name.batch), CLICKHOUSE, forged[CLICKHOUSE])

    try:
        chord.start(app, chord.FanOut(name, (CLICKHOUSE,), int(staging.now()) + 60))
    except Forged:
        assert sealed

    assert len(eager.sink("clickhouse").rows) == (0 if sealed else 1)


@SEALED
def test_a_manifest_without_its_digests_is_refused(eager: EagerFleet, sealed: bool):
    """A manifest without its digests is refused, because one seal covers its tasks, its reader and its digests."""
    staging, manifest, name = stage_rows(eager)
    changed = msgspec.to_builtins(manifest)
    for entry in changed["tasks"]:
        entry["content"] = ""
    eager.client.hset(staging.key(name.batch), MANIFEST, msgspec.json.encode(changed))

    report = staging.report(name, unexplained="has no mark")

    assert (report is None) is sealed
    if sealed:
        with pytest.raises(Forged):
            staging.begin(name.batch, CLICKHOUSE, "task-1")


@SEALED
def test_forged_progress_leaves_no_row_out(eager: EagerFleet, sealed: bool):
    """Forged progress, whose empty `left` would mean that all items are durable, is ignored, so every row is
    written.
    """
    batch = make_batch(messages=3)
    encoder = Encoder(eager.settings.sinks, eager.settings.blobs_per_task, READER)
    key = Staging(eager.client, eager.settings).key(reference(encoder.encode(batch).manifest))
    eager.client.hset(key, f"left/{CLICKHOUSE}", '{"left":[],"refused":[]}')

    assert isinstance(eager.settle(batch), on.FlushSucceeded)

    assert len(eager.sink("clickhouse").rows) == (3 if sealed else 0)


@SEALED
def test_a_forged_parked_batch_is_not_shown_and_not_acted_on(eager: EagerFleet, sealed: bool):
    """A forged parked batch is neither shown nor acted on; abandoning it would dead-letter a range that the
    attacker chose.
    """
    coordination = Coordination(eager.client, eager.settings, IgnoredEntries())
    coordination.publish_reader(READER, msgspec.json.encode({"seen_at": coordination.now()}).decode())
    later = coordination.now() + 3600
    forged = {"batch_id": "t-0-0-9", "reader": READER, "parked_at": 1, "retry_at": later, "leased_until": later}
    eager.client.hset("replays:parked", "t-0-0-9", msgspec.json.encode(forged))

    assert list(coordination.parked()) == ([] if sealed else ["t-0-0-9"])
    if sealed:
        with pytest.raises(NotParked):
            retry(coordination, "t-0-0-9", "me")


def test_a_parked_batch_cannot_be_given_another_range(eager: EagerFleet):
    """If one field of a sealed entry is changed, the entry is ignored."""
    eager.dispatcher.submit(do.Park(make_batch(), Stage.ROWS, 1, "x", 30.0))
    eager.settle(make_batch(start=100))
    coordination = Coordination(eager.client, eager.settings, IgnoredEntries())
    (about,) = coordination.parked().values()
    ((name, text),) = eager.client.hgetall("replays:parked").items()
    eager.client.hset("replays:parked", name, msgspec.json.encode({**msgspec.json.decode(text), "stop": 10**6}))

    assert about["stop"] == 3
    assert coordination.parked() == {}


@SEALED
def test_a_forged_decision_is_not_shown(eager: EagerFleet, sealed: bool):
    """A forged decision in the copy in Redis is not shown by `tenants ls`, `reconcile` or the pages.

    Readers follow the topic and do not use the copy.
    """
    copy = DecisionCopy(eager.client, eager.settings)
    copy.apply({"killed/7": Decision(3, {"at": 1.0, "by": "me"})}, 4)
    decided, audit, _ = copy.keys
    ours = eager.client.hget(decided, "killed/7")
    eager.client.hset(decided, mapping={"killed/8": ours, "killed/9": '{"at":1.0,"by":"x","key":"killed/9"}'})
    eager.client.zadd(audit, {'{"at":1.0,"by":"x","key":"audit/1","what":"nothing"}': 1.0})

    assert ("killed/9" in copy.in_force()) is not sealed
    assert (copy.get(["killed/9"]) == [None]) is sealed
    assert (copy.audited(9) == []) is sealed
    assert copy.get(["killed/7", "killed/8"]) == [{"version": 1, "at": 1.0, "by": "me", "key": "killed/7"}, None]


def test_a_copy_of_decisions_without_seals_is_rebuilt(eager: EagerFleet):
    """A copy of decisions without seals is rebuilt; otherwise it would count as complete, although all of it is
    ignored.
    """
    before = DecisionCopy(eager.client, Settings(shared_key=""))  # type: ignore[arg-type]
    copy, known = DecisionCopy(eager.client, eager.settings), {"killed/7": Decision(3, {"at": 1.0, "by": "me"})}
    before.apply(known, 4)

    assert (before.copied_offset(), copy.copied_offset()) == (4, None)
    copy.apply(known, 4, replace_all=True)
    assert (before.copied_offset(), copy.copied_offset()) == (4, 4)
    assert list(copy.in_force()) == ["killed/7"]


def test_retries_and_attempts_continue_where_they_stopped(eager: EagerFleet):
    """With a shared key, a retry of a task and a new attempt at a batch write only what is left: sealed progress
    and sealed done marks are accepted, and nothing is written twice.
    """
    from tasks.errors import TransientSinkError

    failures: list[Any] = [TransientSinkError("429", failed=(5,)), *[TransientSinkError("429", failed=(0,))] * 2]
    eager.sink("gcs").fail(*failures)
    batch = make_batch(messages=10)

    failed = eager.settle(batch, Stage.BLOBS)
    succeeded = eager.settle(batch, Stage.BLOBS, attempt=2)
    again = eager.settle(batch, Stage.BLOBS, attempt=3)

    assert isinstance(failed, on.DispatchFailed)
    assert isinstance(succeeded, on.FlushSucceeded)
    assert isinstance(again, on.FlushSucceeded)
    assert [count for _, count in eager.sink("gcs").calls] == [10, 1, 1, 1]


@pytest.mark.parametrize("sealed", [False, "accept"], ids=["readers last", "readers first"])
def test_the_key_is_turned_on_one_program_after_the_other(
    eager: EagerFleet, sealed: bool | str, monkeypatch: pytest.MonkeyPatch
):
    """The shared key can be enabled on one program at a time: with REPLAYS_SHARED_KEY_UNSEALED=accept, unsealed
    entries are accepted, so batches are still flushed.
    """
    if sealed:
        monkeypatch.delenv("REPLAYS_SHARED_KEY")
    else:
        monkeypatch.setenv("REPLAYS_SHARED_KEY", KEY)
        monkeypatch.setenv("REPLAYS_SHARED_KEY_UNSEALED", "accept")
    batch = make_batch(messages=3)

    events = [eager.settle(batch, stage) for stage in Stage]
    again = eager.settle(batch, Stage.ROWS, attempt=2)

    assert events == [on.FlushSucceeded(batch.id, 1, stage) for stage in Stage]
    assert again == events[-1]
    assert len(eager.sink("clickhouse").rows) == 3


def test_reports_without_a_seal_are_ignored_once_the_key_is_required(
    eager: EagerFleet, monkeypatch: pytest.MonkeyPatch
):
    """Once the key is required, unsealed reports are ignored, and the reader writes their rows again: nothing
    is lost.
    """
    monkeypatch.delenv("REPLAYS_SHARED_KEY")
    batch, other = make_batch(messages=3), make_batch(start=100)
    eager.dispatcher.submit(do.Dispatch(batch, Stage.ROWS, 1, 60.0))
    wait_until(lambda: eager.client.xlen(reader_stream(READER)) == 1, 20, "the report without a seal")
    Coordination(eager.client, eager.settings).send_completion(READER, Completion(CompletionKind.RETRY, other.id))

    assert eager.inbox.get(timeout=20) == on.RetryRequested(other.id)
