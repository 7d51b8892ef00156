"""Objects in a Cloud Storage server, and the responses of a failing server."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable

import pytest

from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.migrate.gcs import migrate_bucket
from tasks.settings import Settings
from tasks.sinks.gcs.sink import GcsSink, client, crc32c
from tasks.sinks.gcs.uploads import pause_seconds
from tasks.sinks.outcome import Blame, Failure
from tasks.units import MiB
from tasks.wire import Blob
from tests.kit.scripted_server import Answer, ReceivedRequest, answering
from tests.kit.sink_answers import object_stored

BACKEND_ERROR = b'{"error":{"code":503,"message":"backend error","errors":[{"reason":"backendError"}]}}'


def blob(name: str, content: bytes = b"recording", offset: int = 0) -> Blob:
    return Blob(name, content, offset)


@pytest.fixture
def bucket_settings(settings: Callable[..., Settings], gcs_endpoint: str) -> Settings:
    """Settings whose bucket exists."""
    made = settings(gcs_endpoint=gcs_endpoint)
    assert list(migrate_bucket(made, dry_run=False)) == [f"create bucket gs://{made.gcs_bucket}"]
    return made


def objects(made: Settings) -> dict[str, bytes]:
    server = client(made)
    return {found.name: found.download_as_bytes() for found in server.list_blobs(made.gcs_bucket)}


def test_objects_read_back_byte_for_byte(bucket_settings: Settings) -> None:
    """Stored objects equal the written ones: empty or several megabytes long, given as bytes or as a memoryview,
    and with names that need quoting.
    """
    items = [
        blob("30/1/abc/0", os.urandom(20_000)),
        blob("30/1/abc/1", b""),
        blob("90/2/a name with ä, ? and #/2", os.urandom(3 * MiB)),
        Blob("60/1/abc/3", memoryview(b"<<view>>")[2:6], 3),
    ]
    sink = GcsSink(bucket_settings)

    sink.write(items, "token", 20)

    assert objects(bucket_settings) == {item.name: bytes(item.content) for item in items}
    sink.close()


def test_writing_twice_leaves_one_copy(bucket_settings: Settings) -> None:
    """If an object is written twice, one copy remains, because the second write overwrites the first."""
    items = [blob(f"30/1/abc/{segment}", b"segment %d" % segment) for segment in range(50)]
    sink = GcsSink(bucket_settings)

    sink.write(items, "token", 20)
    once = objects(bucket_settings)
    sink.write(items, "token", 20)

    assert objects(bucket_settings) == once == {item.name: item.content for item in items}
    sink.close()


def test_the_last_object_of_a_name_wins(bucket_settings: Settings) -> None:
    """If the SDK sent a segment twice within a batch, the later copy is stored."""
    sink = GcsSink(bucket_settings)

    sink.write([blob("30/1/a/0", b"first"), blob("30/1/a/1", b"other"), blob("30/1/a/0", b"second")], "t", 20)

    assert objects(bucket_settings) == {"30/1/a/0": b"second", "30/1/a/1": b"other"}
    sink.close()


def test_a_missing_bucket_blames_no_recording(settings: Callable[..., Settings], gcs_endpoint: str) -> None:
    """A missing bucket is a configuration error that names the bucket.

    The batch waits for an operator, and no recording becomes a dead letter.
    """
    made = settings(gcs_endpoint=gcs_endpoint)
    sink = GcsSink(made)

    with pytest.raises(PermanentSinkError) as refused:
        sink.write([blob("30/1/a/0")], "token", 10)
    with pytest.raises(PermanentSinkError, match=f"{made.gcs_bucket}.*migrate"):
        sink.check()

    assert refused.value.configuration
    sink.close()


def test_check_sees_the_bucket(bucket_settings: Settings) -> None:
    sink = GcsSink(bucket_settings)
    assert bucket_settings.gcs_bucket in sink.check().text
    sink.close()
    sink.close()


def test_the_bucket_is_created_once_with_a_rule_per_retention(
    settings: Callable[..., Settings], gcs_endpoint: str
) -> None:
    """`migrate` creates the bucket with one lifecycle rule per retention period. A dry run changes nothing, and a
    second run reports that the bucket exists.
    """
    made = settings(gcs_endpoint=gcs_endpoint)

    assert list(migrate_bucket(made, dry_run=True)) == list(migrate_bucket(made, dry_run=False))
    (again,) = migrate_bucket(made, dry_run=False)

    assert "is there" in again


def test_only_failed_objects_are_listed(settings: Callable[..., Settings]) -> None:
    """The error lists the positions of the objects that are not durable, in whatever order the uploads
    complete.
    """

    def answer(request: ReceivedRequest) -> Answer:
        return Answer(503, BACKEND_ERROR) if "bad" in request.path else object_stored(request)

    items = [blob(f"30/1/{'bad' if n in (3, 11) else 'ok'}/{n}") for n in range(16)]
    with answering(answer) as (url, requests):
        sink = GcsSink(settings(gcs_endpoint=url))
        with pytest.raises(TransientSinkError) as failed:
            sink.write(items, "token", 10)
        sink.close()

    assert failed.value.failed == (3, 11)
    assert "backend error" in str(failed.value)
    assert sum("ok" in request.path for request in requests) == 14


def test_a_failed_upload_is_retried_within_the_call(settings: Callable[..., Settings]) -> None:
    """A failed upload is retried within the call, so a single 503 among many uploads only delays the write
    slightly."""
    first = threading.Event()

    def answer(request: ReceivedRequest) -> Answer:
        if "abc%2F7" in request.path and not first.is_set():
            first.set()
            return Answer(503, BACKEND_ERROR)
        return object_stored(request)

    with answering(answer) as (url, requests):
        sink = GcsSink(settings(gcs_endpoint=url))
        sink.write([blob(f"30/1/abc/{n}") for n in range(20)], "token", 10)
        sink.close()

    assert len(requests) == 21


def test_uploads_that_wait_for_a_retry_hold_no_connection(
    settings: Callable[..., Settings],
) -> None:
    """If only one connection is allowed and the first of 20 uploads waits a second for its retry, the other 19 are
    sent meanwhile.
    """
    earlier_paths: list[str] = []

    def answer(request: ReceivedRequest) -> Answer:
        first = "abc%2F0" in request.path and request.path not in earlier_paths
        earlier_paths.append(request.path)
        return Answer(429, b"slow down", {"Retry-After": "1"}) if first else object_stored(request)

    with answering(answer) as (url, requests):
        sink = GcsSink(settings(gcs_endpoint=url, gcs_connections=1))
        sink.write([blob(f"30/1/abc/{n}") for n in range(20)], "token", 20)
        sink.close()

    assert [request.path for request in requests][-1] == requests[0].path
    assert len(requests) == 21


def test_a_long_retry_after_ends_the_write_and_the_rest_is_durable(settings: Callable[..., Settings]) -> None:
    """A long Retry-After ends the write, even if the deadline would allow the wait. All other items are durable.

    A process that waits is unavailable to other tasks, so the task is postponed.
    """

    def answer(request: ReceivedRequest) -> Answer:
        if "abc%2F3" in request.path:
            return Answer(429, b"slow down", {"Retry-After": "20"})
        return object_stored(request)

    with answering(answer) as (url, requests):
        sink = GcsSink(settings(gcs_endpoint=url))
        with pytest.raises(TransientSinkError) as failed:
            sink.write([blob(f"30/1/abc/{n}") for n in range(9)], "token", 60)
        sink.close()

    # After the 20 s that the server requests, there would still be time for one more request.
    assert (failed.value.failed, failed.value.retry_after_seconds) == ((3,), 20)
    assert len(requests) == 9


def test_only_the_limit_of_one_object_name_waits_a_second() -> None:
    """A 429 caused by the load on the bucket is retried like a 503; a 429 with Retry-After is not retried before
    that time.
    """
    delayed = Failure(Blame.SERVER, "HTTP 429: slow down", retry_after_seconds=1.0)
    load = Failure(Blame.SERVER, "HTTP 429: too many requests for this bucket")
    name = Failure(Blame.SERVER, "HTTP 429: exceeded the rate limit for object mutation operations")

    assert all(0 <= pause_seconds(load, tries=1) <= 0.1 for _ in range(100))
    assert all(0 <= pause_seconds(load, tries=3) <= 0.4 for _ in range(100))
    assert all(1.0 <= pause_seconds(name, tries=1) <= 1.1 for _ in range(100))
    assert all(1.0 <= pause_seconds(delayed, tries=1) <= 1.1 for _ in range(100))


def test_a_failing_service_is_not_overloaded_by_retries(settings: Callable[..., Settings]) -> None:
    """If every upload fails, only a quarter of the uploads are retried; not every upload is tried four times."""
    with answering(lambda request: Answer(503, BACKEND_ERROR)) as (url, requests):
        sink = GcsSink(settings(gcs_endpoint=url))
        with pytest.raises(TransientSinkError) as failed:
            sink.write([blob(f"30/1/abc/{n}") for n in range(40)], "token", 10)
        sink.close()

    assert failed.value.failed == tuple(range(40))
    assert len(requests) <= 40 + 10


def test_retry_after_is_passed_on(settings: Callable[..., Settings]) -> None:
    """If a 429 response specifies a longer wait than the deadline allows, the write fails without a retry, and its
    error states that wait."""
    with answering(lambda request: Answer(429, b"slow down", {"Retry-After": "77"})) as (url, requests):
        sink = GcsSink(settings(gcs_endpoint=url))
        with pytest.raises(TransientSinkError) as failed:
            sink.write([blob("30/1/abc/0")], "token", 5)
        sink.close()

    assert failed.value.retry_after_seconds == 77
    assert len(requests) == 1


def test_the_deadline_is_kept_when_the_server_hangs(settings: Callable[..., Settings]) -> None:
    """If the server hangs, completed uploads are durable, and when the deadline passes, the error lists all other
    uploads.
    """
    never = threading.Event()

    def answer(request: ReceivedRequest) -> Answer:
        return Answer(delay=never) if "hang" in request.path else object_stored(request)

    with answering(answer) as (url, _):
        sink = GcsSink(settings(gcs_endpoint=url))
        with pytest.raises(TransientSinkError) as failed:
            sink.write([blob("30/hang/a/0"), blob("30/1/a/1"), blob("30/hang/a/2")], "token", 0.5)
        never.set()  # a write that waited for the server would have received its response without an error
        sink.close()

    assert failed.value.failed == (0, 2)


def test_a_closed_keep_alive_connection_is_reopened(settings: Callable[..., Settings]) -> None:
    """If the server has closed an idle connection, the upload does not fail.

    The upload is sent again immediately on a new connection.
    """
    cuts = iter([False, True, False])

    with answering(lambda request: Answer(cut=True) if next(cuts) else object_stored(request)) as (url, requests):
        sink = GcsSink(settings(gcs_endpoint=url, gcs_connections=1))
        sink.write([blob("30/1/a/0")], "token", 10)
        sink.write([blob("30/1/a/1")], "token", 10)
        sink.close()

    assert [request.path[-7:] for request in requests] == ["1%2Fa%2F0"[-7:], "1%2Fa%2F1"[-7:], "1%2Fa%2F1"[-7:]]


def test_the_checksum_is_sent_and_compared(settings: Callable[..., Settings]) -> None:
    """The upload contains our CRC32C; if the server reports a different value, the object counts as not stored."""
    with answering(lambda request: object_stored(request, crc32c="AAAAAA==")) as (url, requests):
        sink = GcsSink(settings(gcs_endpoint=url))
        with pytest.raises(TransientSinkError, match="checksum"):
            sink.write([blob("30/1/a/0", b"123456789")], "token", 10)
        sink.close()

    # The check value of CRC-32C, from its definition: 0xE3069283 for "123456789".
    assert crc32c(b"123456789") == base64.b64encode(bytes.fromhex("e3069283")).decode()
    assert requests[0].headers["X-Goog-Hash"] == "crc32c=" + crc32c(b"123456789")


def test_refused_connections_are_transient(settings: Callable[..., Settings]) -> None:
    """If connections are refused, the error lists every item, and the write takes at most a few attempts."""
    sink = GcsSink(settings(gcs_endpoint="http://127.0.0.1:1"))

    with pytest.raises(TransientSinkError) as failed:
        sink.write([blob("30/1/a/0"), blob("30/1/a/1")], "token", 5)
    with pytest.raises(TransientSinkError):
        sink.check()

    assert failed.value.failed == (0, 1)
    sink.close()


def test_a_refused_permission_is_configuration(settings: Callable[..., Settings]) -> None:
    """A 403 caused by a missing permission parks the batch; a 403 caused by load does not."""
    rights = b'{"error":{"code":403,"message":"no","errors":[{"reason":"forbidden"}]}}'
    load = b'{"error":{"code":403,"message":"no","errors":[{"reason":"rateLimitExceeded"}]}}'

    with answering(lambda request: Answer(403, rights if "rights" in request.path else load)) as (url, _):
        sink = GcsSink(settings(gcs_endpoint=url))
        with pytest.raises(PermanentSinkError) as refused:
            sink.write([blob("30/rights")], "token", 5)
        with pytest.raises(TransientSinkError):
            sink.write([blob("30/load")], "token", 5)
        sink.close()

    assert refused.value.configuration
