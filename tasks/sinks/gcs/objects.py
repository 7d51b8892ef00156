"""Verifies that an object is stored. If an upload is refused, compares it with the existing object.

The proof is the object resource that Cloud Storage returns for an upload: its name, bucket, size and CRC32C must
equal those of the upload, and it must have a generation.
https://cloud.google.com/storage/docs/json_api/v1/objects#resource
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from tasks.sinks.google.errors import classify_answer
from tasks.sinks.http.answers import Answer, unproven_success
from tasks.sinks.outcome import Blame, Failure

PROOF = (
    "Status 200 with the object's resource in JSON: `bucket`, `name`, `size` and `crc32c` equal those "
    "of the upload, and `generation` is positive. If overwriting is refused (403, 412), the same resource is "
    "requested as proof."
)
# The parameter `fields` reduces the response from a thousand bytes to two hundred.
PROOF_FIELDS = "name,bucket,generation,size,crc32c"
COMPARED_FIELDS = f"{PROOF_FIELDS},customTime,retentionExpirationTime,retention,temporaryHold,eventBasedHold"
PROTECTIONS = ("retentionExpirationTime", "retention", "temporaryHold", "eventBasedHold")
# Matches Cloud Storage's message about a protected object, in case the object's resource does not show this.
_PROTECTED = re.compile(r"retention|\bhold\b", re.IGNORECASE)
_RATE_LIMITED = "object mutation"


@dataclass(frozen=True, slots=True)
class WantedObject:
    """The expected object. `crc32c`: base64, as in Cloud Storage."""

    bucket: str
    name: str
    size_bytes: int
    crc32c: str

    @property
    def is_packed(self) -> bool:
        return is_packed(self.name)


def is_packed(name: str) -> bool:
    """Returns whether the object with this name contains many recordings. In the names of other objects, the
    second part is a project id."""
    return name.split("/", 2)[1:2] == ["packed"]


def difference(wanted: WantedObject, resource: dict[str, Any] | None) -> str | None:
    """Describes how this object resource differs from the expected object. Returns None if the resource proves
    that the expected object is stored.
    """
    if resource is None:
        return "it is not an object resource"
    generation = str(resource.get("generation"))
    if not generation.isdecimal() or int(generation) < 1:
        return "it has no generation"
    for name, value in (
        ("bucket", wanted.bucket),
        ("name", wanted.name),
        ("size", str(wanted.size_bytes)),
        ("crc32c", wanted.crc32c),
    ):
        found = resource.get(name)
        if str(found) != value:
            return f"{'checksum' if name == 'crc32c' else name} is {found!r} instead of {value!r}"
    return None


class _Resource(msgspec.Struct, gc=False):
    """The fields of an object's resource on which the proof depends."""

    bucket: str
    name: str
    size: str
    crc32c: str
    generation: str


_decode = msgspec.json.Decoder(_Resource).decode


def is_proof(wanted: WantedObject, answer: Answer) -> bool:
    """Returns whether this response is the object's resource. The check is optimized for speed, because it runs
    for nearly every upload.
    """
    if answer.status != 200 or not answer.whole:
        return False
    try:
        found = _decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return (
        found.crc32c == wanted.crc32c
        and found.name == wanted.name
        and found.bucket == wanted.bucket
        and found.size == str(wanted.size_bytes)
        and found.generation.isdecimal()
        and int(found.generation) > 0
    )


def failure_of(wanted: WantedObject, answer: Answer) -> Failure | None:
    """Returns a `Failure` if this response to an upload does not prove that the object is durable with a matching
    checksum, otherwise None.
    """
    if is_proof(wanted, answer):
        return None
    if answer.ok:
        why = "status" if answer.status != 200 else difference(wanted, answer.json_object())
        return None if why is None else unproven_success(answer, why).about(wanted.name)
    failure = classify_answer(answer).about(wanted.name)
    if answer.status == 400 and "crc32c" in failure.message.lower():
        return Failure(Blame.NETWORK, f"damaged on the way: {failure.message}")
    if failure.blame is Blame.SIZE:
        return _too_large(wanted, failure)
    if failure.blame is Blame.BATCH:  # the request contains this object only
        return _blame_object(wanted, failure)
    return failure


def may_be_stored(answer: Answer, failure: Failure) -> bool:
    """Returns whether the refusal may have been caused by an existing object, which must then be compared."""
    return answer.status in (403, 412) and failure.blame in (Blame.CREDENTIALS, Blame.REQUEST)


def compare_stored(
    wanted: WantedObject, refused: Answer, failure: Failure, found: Answer | Failure
) -> Failure | None:
    """Returns a `Failure` for a refused upload, after comparing the upload with the object stored under its name.
    Returns None if an identical object is already stored.
    """
    if isinstance(found, Failure):
        return found.about(f"comparing {wanted.name}")
    if not found.ok:
        return _not_comparable(wanted, refused, failure, found)
    resource = found.json_object()
    why = difference(wanted, resource)
    if why is None:
        return None
    if resource is None or resource.get("name") != wanted.name or resource.get("bucket") != wanted.bucket:
        return unproven_success(found, why).about(f"comparing {wanted.name}")
    if wanted.is_packed:
        # `erase` overwrites parts of a packed object and sets a custom time. The erased parts must stay erased.
        if resource.get("customTime") and str(resource.get("size")) == str(wanted.size_bytes):
            return None
        return Failure(Blame.TABLE, f"another object is stored as {wanted.name}: {why}")
    if any(resource.get(name) for name in PROTECTIONS) or _PROTECTED.search(failure.message):
        return Failure(Blame.ROW, f"another recording is stored there and protected ({why}): {failure.message}")
    return Failure(failure.blame, f"{failure.message}; another recording is stored there ({why})")


def is_name_rate_limited(failure: Failure) -> bool:
    """Returns whether the cause is the limit of about one write per second per object name."""
    return _RATE_LIMITED in failure.message


def _not_comparable(wanted: WantedObject, refused: Answer, failure: Failure, found: Answer) -> Failure:
    sorted_ = classify_answer(found)
    if found.status == 404:
        # 412 means that the object exists. If it is missing now, it has been deleted since, or another server
        # responded.
        return (
            Failure(Blame.SERVER, f"{failure.message}; but nothing is stored there")
            if (refused.status == 412)
            else failure
        )
    if sorted_.blame is Blame.CREDENTIALS:
        return Failure(
            failure.blame,
            f"{failure.message}; the stored object cannot be compared: grant storage.objects.get",
        )
    return sorted_.about(f"comparing {wanted.name}")


def _too_large(wanted: WantedObject, failure: Failure) -> Failure:
    text = f"object of {wanted.size_bytes} bytes is too large: {failure.message}"
    if wanted.is_packed:
        advice = "raise the body limit of the proxy, or lower REPLAYS_BATCH_BYTES_MAX"
        return Failure(Blame.REQUEST, f"packed {text}; {advice}")
    return Failure(Blame.ROW, text)


def _blame_object(wanted: WantedObject, failure: Failure) -> Failure:
    """Parks the batch of a packed object, because a dead letter could not list the object's many recordings."""
    if wanted.is_packed:
        return Failure(Blame.TABLE, f"packed object {failure.message}")
    return failure.blamed(Blame.ROW)
