"""Handles shared Redis keys of an unexpected type, which another program wrote and on which every command fails.

Reads treat such a key as empty, so that all other keys are still shown. The program that maintains the key deletes
it with its next heartbeat.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from redis.exceptions import ResponseError

log = logging.getLogger(__name__)
HASH, SORTED_SET, MISSING = b"hash", b"zset", b"none"


def results(pipe: Any, replacement: Any) -> list[Any]:
    """Runs a read-only pipeline. The result for a key of another type is `replacement`. Raises RedisError."""
    found: list[Any] = pipe.execute(raise_on_error=False)
    for index, result in enumerate(found):
        if isinstance(result, ResponseError) and "WRONGTYPE" in str(result):
            found[index] = replacement
        elif isinstance(result, Exception):
            raise result
    return found


def remove_wrong_types(client: Any, keys: Iterable[str]) -> None:
    """Deletes the keys that exist and are not hashes. Raises RedisError."""
    checked = tuple(keys)
    pipe = client.pipeline(transaction=False)
    for key in checked:
        pipe.type(key)
    wrong_type = [key for key, kind in zip(checked, pipe.execute(), strict=True) if kind not in (HASH, MISSING)]
    if wrong_type:
        log.warning("removed %s: another program wrote it with another type", ", ".join(wrong_type))
        client.delete(*wrong_type)
