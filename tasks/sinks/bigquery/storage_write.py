"""Writes rows to BigQuery with the Storage Write API. Each append is recorded with its offset before it is sent.

A run that finds a recorded append sends the same rows to the same offset of the same stream again. If the stream
no longer accepts the append, it is finalized, and its row count proves whether the rows are stored. Rows are sent
to another stream only if they are proven not to be stored, or if the stream is gone; in the latter case the view
`<table>_exact` hides repeated rows. docs/decisions/039-storage-write.md lists all states.

BigQuery refuses an append as a whole and names the bad rows. The good rows are written again in the same call, on
another stream, because an offset of a stream is never reused for different rows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from tasks.settings import Settings
from tasks.sinks.base import Report, TaskRecord
from tasks.sinks.bigquery.append_answers import Judgment, Verdict, judge, judge_error
from tasks.sinks.bigquery.append_record import Append, DiscardedRecord, decode, encode, ranges
from tasks.sinks.bigquery.row_encoding import RowEncoder
from tasks.sinks.bigquery.rows_to_send import Positions, RowsToSend, rows_to_send
from tasks.sinks.bigquery.sink import REQUEST_BYTES_MAX, TABLES, BigQuerySink
from tasks.sinks.bigquery.streams import Stream, Streams, write_client
from tasks.sinks.google.errors import classify
from tasks.sinks.http.limits import BodyLimit
from tasks.sinks.outcome import Action, Blame, Failure, Outcome, seconds_until
from tasks.sinks.per_process import PerProcessValue
from tasks.wire import Row

log = logging.getLogger(__name__)
# Maximum number of requests per append in one run: the first attempt, and retries after a lost response.
SENDS_MAX = 3
# Share of the remaining time that one request may take, so that there is time to send the request again.
SEND_SHARE = 0.5
# Maximum number of refused appends per write. The number is limited because each refusal requires a new
# stream. The next write sends the remaining rows.
REFUSALS_MAX = 4
# Maximum number of times per write that an append may find its stream finalized or gone.
DROPS_MAX = 3
# Maximum number of times that other runs of the same task may change the record during one write.
CONFLICTS_MAX = 10


class StorageWriteSink:
    """Writes rows. Memory: the items, their encoded form if they are JSON, and one request, at most 9 MiB (or one
    larger row)."""

    name = "bigquery"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rest = BigQuerySink(settings)
        self._writer = PerProcessValue(lambda: Writer(settings))

    def write(self, items: Sequence[Row], token: str, deadline_seconds: float) -> None:
        """Same as `write_recorded`, but without a record: if a response is lost, rows may be stored twice."""
        self.write_recorded(items, range(len(items)), DiscardedRecord(), deadline_seconds)

    def write_recorded(
        self, items: Sequence[Row], positions: Sequence[int], record: TaskRecord, deadline_seconds: float
    ) -> None:
        """Appends `items`. As long as the record exists, each row is appended exactly once, even if the task runs
        again.

        `positions`: the position of each item in the task's payload. PermanentSinkError.failed names the refused
        rows. All other rows are durable unless `all_refused` is set.
        """
        ends_at = time.monotonic() + deadline_seconds
        outcome = Outcome(self.name)
        try:
            writer = self._writer.get()
        except Exception as error:
            raise classify(error).error() from error
        places = Positions(positions)
        rows = rows_to_send(writer.encoders, items, places, outcome)
        _Write(writer, rows, places, record, ends_at, outcome).run()
        outcome.raise_if_any()

    def examine(self, items: Sequence[Row], deadline_seconds: float) -> None:
        """Checks that the tables have the right columns and accept a valid row; nothing is stored."""
        self._rest.examine(items, deadline_seconds)

    def check(self) -> Report:
        """Checks the tables, and whether streams can be created and finalized."""
        report = self._rest.check()
        ends_at = time.monotonic() + self._settings.sink_timeout_seconds
        for table in TABLES:
            try:
                streams = self._writer.get().streams
                stream = streams.take(table, seconds_until(ends_at))
                streams.finalize(stream.name, seconds_until(ends_at))
            except Exception as error:
                failure = classify(error).about(f"Storage Write API, table {table}")
                raise _with_advice(failure).error() from error
        return Report(f"{report.text}, and streams can be created", report.warnings, report.not_tested)

    def close(self) -> None:
        self._rest.close()
        writer = self._writer.take()
        if writer is not None:
            writer.streams.close()


def _with_advice(failure: Failure) -> Failure:
    """Returns the error with advice appended to its message."""
    todo = {
        Blame.CREDENTIALS: "; grant roles/bigquery.dataEditor",
        Blame.TABLE: "; run `replays-ingest migrate`",
        Blame.REQUEST: "; correct REPLAYS_BIGQUERY_STORAGE_ENDPOINT, or set REPLAYS_BIGQUERY_WRITE=insert_all",
        Blame.SERVER: "; if it does not answer, correct REPLAYS_BIGQUERY_STORAGE_ENDPOINT",
    }.get(failure.blame, "")
    return Failure(failure.blame, f"{failure.message}{todo}")


class Writer:
    """State of one process: the streams, with their official client, and one row encoder per table."""

    def __init__(self, settings: Settings) -> None:
        parent = f"projects/{settings.bigquery_project}/datasets/{settings.bigquery_dataset}/tables/"
        self.streams = Streams(write_client(settings), parent)
        self.encoders = {table: RowEncoder(table) for table in TABLES}
        self.limit = BodyLimit(REQUEST_BYTES_MAX)


class _Write:
    """One call to `write_recorded`. Positions refer to the task's payload, except in `outcome`, where they refer
    to the items.
    """

    def __init__(
        self,
        writer: Writer,
        rows: RowsToSend,
        positions: Positions,
        record: TaskRecord,
        ends_at: float,
        outcome: Outcome,
    ) -> None:
        self._writer = writer
        self._record = record
        self._ends_at = ends_at
        self._outcome = outcome
        self._positions = positions
        self._rows = rows
        self._appends: list[Append] = []
        self._pending_positions: list[int] = []
        self._given_up: set[int] = set()
        self._refusals = self._conflicts = self._drops = 0
        self._record_is_behind = False

    def run(self) -> None:
        """Settles recorded appends, then appends the remaining rows. Records in `outcome` which rows are not
        durable."""
        self._load()
        while True:
            unsettled = next((append for append in self._appends if not append.applied), None)
            if unsettled is not None:
                stream = self._writer.streams.open_existing(unsettled.table, unsettled.stream)
                try:
                    goes_on = self._resolve_append(unsettled, stream)
                finally:
                    stream.close()
            else:
                goes_on = bool(self._pending_positions) and self._append_next()
            if not goes_on:
                break
        if self._record_is_behind:
            self._record.store(encode(self._appends))

    def _load(self) -> None:
        """Reads the record. Rows of recorded appends must not be appended to another stream."""
        try:
            appends = decode(self._record.load())
        except msgspec.MsgspecError as error:
            log.warning("bigquery: the record of a task's appends cannot be read, and is ignored: %s", error)
            appends = []
        # Forget applied appends that contain none of this write's rows; they matter only to earlier runs.
        self._appends = [append for append in appends if not append.applied or self._concerns(append)]
        recorded = {position for append in self._appends for position in append.positions}
        recorded |= self._given_up
        self._pending_positions = [position for position in self._rows.positions if position not in recorded]

    def _concerns(self, append: Append) -> bool:
        return any(position in self._positions for position in append.positions)

    # ---- one append

    def _append_next(self) -> bool:
        """Assigns a stream and an offset to the next rows, records this assignment, and appends the rows. Returns
        whether to continue.
        """
        if seconds_until(self._ends_at) <= 0:
            return self._stop(Failure(Blame.NETWORK, "no time left for the rest"), self._pending_positions)
        chunk = self._chunk()
        table = self._rows.table(chunk[0])
        try:
            stream = self._writer.streams.take(table, seconds_until(self._ends_at))
        except Exception as error:
            return self._stop(classify(error).about(f"table {table}: no stream"), self._pending_positions)
        is_free = False
        try:
            append = Append(table, stream.name, stream.offset, ranges(chunk))
            if not self._record.store(encode([*self._appends, append])):
                # If the response was lost, Redis may have stored the record, so the offset counts as used.
                return self._reload()
            self._record_is_behind = False
            self._appends.append(append)
            self._pending_positions = self._pending_positions[len(chunk) :]
            goes_on = self._resolve_append(append, stream)
            if replace(append, applied=True) in self._appends:
                stream.offset = append.stop
                is_free = True
            return goes_on
        finally:
            # Even if an exception interrupts this block, a stream with an unsettled append is not used for other
            # rows.
            if is_free:
                self._writer.streams.release(stream)
            else:
                stream.close()

    def _chunk(self) -> list[int]:
        """Returns the positions of the next rows, all of one table, that fit into a request. A single row that is
        too large is sent alone, and the server decides whether to accept it.
        """
        chunk: list[int] = []
        rows, bytes_max = self._rows, self._writer.limit.bytes_max
        table, size_bytes = rows.table(self._pending_positions[0]), 0
        if (
            len(self._pending_positions) == len(rows.positions)
            and rows.only_table
            and rows.size_bytes <= bytes_max
        ):
            return self._pending_positions
        for position in self._pending_positions:
            size_bytes += rows.bytes_of(position)
            if rows.table(position) != table or (chunk and size_bytes > bytes_max):
                break
            chunk.append(position)
        return chunk

    def _reload(self) -> bool:
        """Continues from the record that another run of this task has changed. Returns whether to continue."""
        self._conflicts += 1
        if self._conflicts > CONFLICTS_MAX:
            return self._stop(
                Failure(Blame.SERVER, "other runs of this task write the same rows"), self._pending_positions
            )
        self._load()
        return True

    def _resolve_append(self, append: Append, stream: Stream) -> bool:
        """Sends the append, repeatedly if necessary, to find out whether it has been applied. Returns whether to
        continue.
        """
        if self._rows.positions.contain(append.rows):
            judgment = self._send(append, stream)
        else:
            # The append contains rows from an earlier run that this run does not have and need not write.
            judgment = Judgment(Verdict.ENDED, Failure(Blame.SERVER, "its rows are not at hand"))
        if judgment.verdict is Verdict.APPLIED:
            return self._is_applied(append)
        failure = judgment.failure
        assert failure is not None, judgment
        failure = failure.about(f"table {append.table}")
        if judgment.verdict is Verdict.FAILED:
            return self._stop(failure, [*append.positions, *self._pending_positions])
        if judgment.verdict is not Verdict.MISSING:
            stored = self._rows_of_finalized_stream(append)
            if isinstance(stored, Failure):
                return self._stop(
                    stored.about(f"table {append.table}"), [*append.positions, *self._pending_positions]
                )
            if stored:
                return self._is_applied(append)
        else:
            log.warning("bigquery: stream %s is gone; %s rows are written again", append.stream, append.count)
        self._remove_append(append)
        if judgment.verdict is Verdict.REFUSED:
            return self._refused(append, judgment, failure)
        self._drops += 1
        return self._drops <= DROPS_MAX or self._stop(failure, self._pending_positions)

    def _send(self, append: Append, stream: Stream) -> Judgment:
        """Sends the rows, and sends them again on a new connection if the response is lost."""
        schema, rows = self._rows.schema(append.table), self._rows.framed(append.rows)
        judgment = Judgment(Verdict.FAILED, Failure(Blame.NETWORK, "no time left for the request"))
        for sent in range(SENDS_MAX):
            remaining_seconds = seconds_until(self._ends_at)
            if remaining_seconds <= 0:
                break
            seconds = remaining_seconds if sent == SENDS_MAX - 1 else remaining_seconds * SEND_SHARE
            try:
                judgment = judge(stream.append(schema, append.offset, rows, seconds), append)
            except Exception as error:
                judgment = judge_error(error)
            failure = judgment.failure
            if judgment.verdict is not Verdict.FAILED or failure is None:
                break
            if failure.blame.action is not Action.RETRY or failure.retry_after_seconds is not None:
                break
            stream.close()
        return judgment

    def _rows_of_finalized_stream(self, append: Append) -> bool | Failure:
        """Finalizes the stream. Returns whether the append was applied; this can no longer change once the stream
        is finalized.
        """
        seconds = max(seconds_until(self._ends_at), 1.0)
        try:
            count = self._writer.streams.finalize(append.stream, seconds)
        except Exception as error:
            judgment = judge_error(error)
            if judgment.verdict in (Verdict.FAILED, Verdict.REFUSED):
                return classify(error).about(f"stream {append.stream} cannot be finalized").blamed(Blame.SERVER)
            text = "bigquery: the row count of stream %s is unknown (%s); %s rows are written again"
            log.warning(text, append.stream, error, append.count)
            return False
        if append.offset < count < append.stop:
            log.error("bigquery: stream %s ends within the append %s: %s rows", append.stream, append, count)
        return count >= append.stop

    # ---- results

    def _is_applied(self, append: Append) -> bool:
        place = self._appends.index(append)
        self._appends[place] = replace(append, applied=True)
        return True

    def _remove_append(self, append: Append) -> None:
        """Removes an append that will never be applied, so that its rows may be sent to another stream."""
        self._appends.remove(append)
        self._record_is_behind = True
        mine = [position for position in append.positions if position in self._rows.positions]
        self._pending_positions = sorted({*mine, *self._pending_positions})

    def _refused(self, append: Append, judgment: Judgment, failure: Failure) -> bool:
        """Records the refused rows; the other rows of the append are sent again."""
        positions = append.positions
        if failure.blame is Blame.SIZE and append.count > 1:
            self._writer.limit.refused(sum(self._rows.bytes_of(position) for position in positions))
            return True
        self._refusals += 1
        bad = {positions[index]: text for index, text in judgment.rows}
        if not bad and append.count == 1:
            bad = {positions[0]: failure.message}
        for position, text in bad.items():
            row_failure = Failure(Blame.ROW, f"table {append.table}: {text}")
            self._outcome.note(row_failure, [self._positions.index(position)])
        if not bad:
            self._outcome.note(failure, [self._positions.index(position) for position in positions])
        self._given_up |= set(bad) if bad else set(positions)
        self._pending_positions = [
            position for position in self._pending_positions if position not in self._given_up
        ]
        if self._refusals < REFUSALS_MAX:
            return True
        self._outcome.note_excluded(self._positions.index(position) for position in self._pending_positions)
        return False

    def _stop(self, failure: Failure, positions: Sequence[int]) -> bool:
        """Records in `outcome` that these rows are not durable. The task's record remains for the next run."""
        mine = self._positions
        self._outcome.note(failure, [mine.index(position) for position in positions if position in mine])
        return False
