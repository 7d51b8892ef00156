"""Handles shared Redis keys with an unexpected type: no program of this system wrote them, and every command on
them fails.

Reading treats such a key as empty, so that the others are still shown. The program that maintains a key deletes
one of the wrong type with its next heartbeat.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from redis.exceptions import ResponseError

log = logging.getLogger(__name__)
HASH, SORTED_SET, MISSING = b"hash", b"zset", b"none"


def results(pipe: Any, instead: Any) -> list[Any]:
    """Results of a pipeline that reads, with `instead` for keys of another type. Raises RedisError."""
    found: list[Any] = pipe.execute(raise_on_error=False)
    for index, one in enumerate(found):
        if isinstance(one, ResponseError) and "WRONGTYPE" in str(one):
            found[index] = instead
        elif isinstance(one, Exception):
            raise one
    return found


def remove_wrong_types(client: Any, keys: Iterable[str]) -> None:
    """Deletes those of the keys that exist and are not hashes. Raises RedisError."""
    asked = tuple(keys)
    pipe = client.pipeline(transaction=False)
    for key in asked:
        pipe.type(key)
    wrong = [key for key, kind in zip(asked, pipe.execute(), strict=True) if kind not in (HASH, MISSING)]
    if wrong:
        log.warning("%s: another program wrote it, with another type: removed", ", ".join(wrong))
        client.delete(*wrong)
