"""In a bucket that forbids overwriting, an upload succeeds if the existing object is identical, and becomes a dead
letter if the existing object differs; a missing permission is an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.settings import Settings
from tasks.sinks import Level, check
from tasks.sinks.gcs.sink import GcsSink
from tasks.wire import Blob
from tests.kit.delivering import deliver_to
from tests.kit.scripted_server import Answer, ReceivedRequest, answering
from tests.kit.sink_answers import JSON, object_resource, object_stored

RETENTION = (
    "retentionPolicyNotMet",
    "Object 'b/o' is subject to bucket's retention policy or object retention and cannot be overwritten",
)
HOLD = ("forbidden", "Object 'b/o' is under active Temporary hold and cannot be deleted, overwritten or archived")
NO_DELETE = ("forbidden", "worker does not have storage.objects.delete access to the Google Cloud Storage object.")
PACKED = "30/packed/t-0-0-3/0-abc"


def error(status: int, reason: str, message: str) -> Answer:
    body = {"error": {"code": status, "message": message, "errors": [{"reason": reason, "message": message}]}}
    return Answer(status, json.dumps(body).encode(), JSON)


@dataclass
class Bucket:
    """A server with a bucket in which each object can be written only once.

    A second upload under the same name gets the response `refusal`. `properties` are added to every object
    resource that the server returns.
    """

    refusal: Answer
    properties: dict[str, Any] = field(default_factory=dict)
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    readable: bool = True

    def __call__(self, request: ReceivedRequest) -> Answer:
        if request.method == "GET":
            return self._look(request.path)
        if request.method == "DELETE":
            return Answer(204)
        resource = object_resource(request)
        if resource["name"] in self.objects:
            return self.refusal
        self.objects[resource["name"]] = resource
        return object_stored(request)

    def _look(self, path: str) -> Answer:
        if not self.readable:
            return error(403, "forbidden", "worker does not have storage.objects.get access")
        name = path.split("/o/")[1].split("?")[0].replace("%2F", "/")
        found = self.objects.get(name)
        return (
            Answer(200, json.dumps(found | self.properties).encode(), JSON)
            if found
            else error(404, "notFound", "no")
        )


def blobs(*contents: bytes, name: str = "30/1/abc/{}") -> list[Blob]:
    return [Blob(name.format(place), content, place) for place, content in enumerate(contents)]


@pytest.mark.parametrize(
    "refusal", [error(403, *RETENTION), error(403, *HOLD), error(403, *NO_DELETE), Answer(412)]
)
def test_an_equal_object_counts_as_written(refusal: Answer, settings: Callable[..., Settings]) -> None:
    """If an upload is refused but an object with equal size and checksum is stored, the item counts as written."""
    bucket = Bucket(refusal)
    with answering(bucket) as (url, requests):
        sink = GcsSink(settings(gcs_endpoint=url))
        sink.write(blobs(b"one", b"two"), "token", 5)
        sink.write(blobs(b"one", b"two", b"three"), "again", 5)
        sink.close()

    assert len(bucket.objects) == 3
    assert [request.method for request in requests].count("GET") == 2


@pytest.mark.parametrize(
    ("refusal", "properties"),
    [
        (error(403, *RETENTION), {}),
        (error(403, *HOLD), {}),
        (error(403, "forbidden", "Access denied."), {"retentionExpirationTime": "2027-01-01T00:00:00Z"}),
        (error(403, "forbidden", "Access denied."), {"temporaryHold": True}),
        (error(403, "forbidden", "Access denied."), {"eventBasedHold": True}),
        (error(403, "forbidden", "Access denied."), {"retention": {"mode": "Locked"}}),
    ],
)
def test_another_recording_under_a_protected_name_is_a_dead_letter(
    refusal: Answer, properties: dict[str, Any], settings: Callable[..., Settings]
) -> None:
    """If the SDK sent a segment twice with different content, the second becomes a dead letter, all other
    segments are stored, and the batch completes.
    """
    bucket = Bucket(refusal, properties)
    with answering(bucket) as (url, _):
        sink = GcsSink(settings(gcs_endpoint=url))
        sink.write(blobs(b"one", b"two"), "token", 5)
        progress = deliver_to(sink, blobs(b"one", b"other", b"three"))
        progress_again = deliver_to(sink, blobs(b"one", b"yet another", b"three"))
        sink.close()

    ((position, reason),) = progress.refused
    assert position == 1
    assert "protected" in reason
    assert "30/1/abc/1" in reason
    assert [position for position, _ in progress_again.refused] == [1]
    assert sum("check" in name for name in bucket.objects) == 1


def test_a_missing_permission_to_overwrite_parks_the_batch(settings: Callable[..., Settings]) -> None:
    """If only the permission to overwrite is missing, the batch is parked.

    Once an operator has granted the permission, the later recording is stored.
    """
    with answering(Bucket(error(403, *NO_DELETE))) as (url, _):
        sink = GcsSink(settings(gcs_endpoint=url))
        sink.write(blobs(b"one"), "token", 5)
        with pytest.raises(PermanentSinkError, match=r"storage\.objects\.delete") as refused:
            sink.write(blobs(b"other"), "again", 5)
        sink.close()

    assert refused.value.configuration


def test_an_object_that_cannot_be_compared_parks_the_batch(settings: Callable[..., Settings]) -> None:
    """If a stored object cannot be compared, the batch is parked, and the error names the required permission."""
    with answering(Bucket(error(403, *RETENTION), readable=False)) as (url, _):
        sink = GcsSink(settings(gcs_endpoint=url))
        sink.write(blobs(b"one"), "token", 5)
        with pytest.raises(PermanentSinkError, match=r"grant storage\.objects\.get") as refused:
            sink.write(blobs(b"one"), "again", 5)
        sink.close()

    assert refused.value.configuration


def test_a_refusal_with_nothing_stored_is_about_permissions(settings: Callable[..., Settings]) -> None:
    """A 403 response for a new name, under which nothing is stored, is a permission error."""

    def refuse(request: ReceivedRequest) -> Answer:
        return error(404, "notFound", "No such object") if request.method == "GET" else error(403, *NO_DELETE)

    with answering(refuse) as (url, _):
        sink = GcsSink(settings(gcs_endpoint=url))
        with pytest.raises(PermanentSinkError) as refused:
            sink.write(blobs(b"one"), "token", 5)
        sink.close()

    assert refused.value.configuration


@pytest.mark.parametrize("name", ["30/1/abc/{}", PACKED])
def test_an_unexplained_precondition_failure_is_retried(name: str, settings: Callable[..., Settings]) -> None:
    """If an upload is refused with 412 but no object exists, the upload is retried, because a refusal alone does
    not prove that the object is stored.
    """

    def refuse(request: ReceivedRequest) -> Answer:
        return error(404, "notFound", "No such object") if request.method == "GET" else Answer(412)

    with answering(refuse) as (url, _):
        sink = GcsSink(settings(gcs_endpoint=url))
        with pytest.raises(TransientSinkError, match="nothing is stored"):
            sink.write(blobs(b"one", name=name), "token", 5)
        sink.close()


def test_an_erased_part_of_a_packed_object_stays_erased(settings: Callable[..., Settings]) -> None:
    """`erase` has overwritten a range of the object, so the object has the same size, but a different checksum and
    a custom time.

    When the object is delivered again, it counts as stored and is not overwritten.
    """
    bucket = Bucket(Answer(412))
    with answering(bucket) as (url, _):
        sink = GcsSink(settings(gcs_endpoint=url))
        sink.write(blobs(b"recording", name=PACKED), "token", 5)
        bucket.objects[PACKED] |= {"crc32c": "AAAAAA=="}
        with pytest.raises(PermanentSinkError, match="another object") as refused:
            sink.write(blobs(b"recording", name=PACKED), "again", 5)
        bucket.objects[PACKED] |= {"customTime": "2026-11-01T00:00:00Z"}
        sink.write(blobs(b"recording", name=PACKED), "again", 5)
        sink.close()

    assert refused.value.configuration


def test_a_single_object_that_is_too_large_is_a_dead_letter(settings: Callable[..., Settings]) -> None:
    """If a proxy limits the body size, a single object that is too large becomes a dead letter, and all other
    objects are stored.

    A packed object that is too large parks its batch, and the error says what to do.
    """
    with answering(object_stored, body_bytes_max=5000) as (url, _):
        sink = GcsSink(settings(gcs_endpoint=url))
        with pytest.raises(PermanentSinkError, match=r"9000 bytes is too large.*413") as refused:
            sink.write(blobs(b"one", b"x" * 9000, b"three"), "token", 5)
        with pytest.raises(PermanentSinkError, match="REPLAYS_BATCH_BYTES_MAX") as held:
            sink.write(blobs(b"x" * 9000, name=PACKED), "token", 5)
        sink.close()

    assert refused.value.failed is not None
    assert [position for position, _ in refused.value.failed] == [1]
    assert held.value.configuration


def test_a_bucket_that_refuses_everything_is_at_fault(settings: Callable[..., Settings]) -> None:
    """If three objects and a probe each get 400, the bucket is at fault, and no recording becomes a dead
    letter.
    """
    refusal = error(400, "invalid", "The bucket's default encryption key is disabled.")
    with answering(lambda request: refusal) as (url, requests):
        sink = GcsSink(settings(gcs_endpoint=url))
        with pytest.raises(PermanentSinkError, match="refuses a probe too") as held:
            deliver_to(sink, blobs(b"one", b"two", b"three"))
        sink.close()

    assert held.value.configuration
    assert len(requests) == 4


def test_a_single_refused_object_is_a_dead_letter(settings: Callable[..., Settings]) -> None:
    """If the bucket refuses one object but accepts a probe, that object becomes a dead letter, and the probe is
    deleted.
    """

    def refuse(request: ReceivedRequest) -> Answer:
        if request.method == "DELETE":
            return Answer(204)
        return error(400, "invalid", "No.") if "abc%2F0" in request.path else object_stored(request)

    with answering(refuse) as (url, requests):
        sink = GcsSink(settings(gcs_endpoint=url))
        progress = deliver_to(sink, blobs(b"one"))
        sink.close()

    assert [position for position, _ in progress.refused] == [0]
    assert [request.method for request in requests].count("DELETE") == 2


def test_check_warns_about_protected_objects(settings: Callable[..., Settings]) -> None:
    """`check` warns about a retention policy, holds and object versioning.

    Such protections do not prevent writes, but operators should know about them before a segment arrives twice.
    """
    about = {
        "kind": "storage#bucket",
        "retentionPolicy": {"retentionPeriod": "2592000"},
        "defaultEventBasedHold": True,
        "versioning": {"enabled": True},
        "softDeletePolicy": {"retentionDurationSeconds": "604800"},
        "lifecycle": {
            "rule": [{"action": {"type": "Delete"}, "condition": {"age": 30, "matchesPrefix": ["30/"]}}]
        },
    }
    bucket, contents = Bucket(error(403, *RETENTION)), dict[str, bytes]()

    def answer(request: ReceivedRequest) -> Answer:
        if request.method == "GET" and "/o/" not in request.path:
            return Answer(200, json.dumps(about | {"name": "b"}).encode(), JSON)
        if request.method == "POST":
            contents["probe"] = request.body
        if "alt=media" in request.path:
            return Answer(200, contents["probe"])
        if request.method == "DELETE":
            return error(403, *RETENTION)
        return bucket(request)

    with answering(answer) as (url, _):
        checked = check("gcs", settings(gcs_endpoint=url))

    warnings = "\n".join(checked.warnings)
    assert checked.level is Level.WARNING
    assert "retention policy of 30 days" in warnings
    assert "event-based hold" in warnings
    assert "versioning" in warnings
    assert "soft delete keeps erased bytes for 7 days" in warnings
    assert "nothing deletes 60/, 90/" in warnings
    assert "could not be deleted" in warnings
