"""After a failure or a missed deadline: when to try the batch again."""

from __future__ import annotations

from zlib import crc32


def retry_seconds(batch_id: str, failures: int, first_seconds: float, cap_seconds: float) -> float:
    """Seconds to wait after the `failures`-th failure in a row: doubling from `first_seconds`, capped, for ever.

    The jitter (half to whole of the ceiling) comes from the batch's id, so the core stays deterministic
    while batches that failed together do not come back together.
    """
    ceiling = min(first_seconds * 2.0 ** min(failures - 1, 30), cap_seconds)
    return ceiling * (0.5 + crc32(f"{batch_id}/{failures}".encode()) / 2**33)
