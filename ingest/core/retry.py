"""Backoff for batches after a failure or a missed deadline."""

from __future__ import annotations

from zlib import crc32


def retry_seconds(batch_id: str, failures: int, first_delay_seconds: float, cap_seconds: float) -> float:
    """Returns the seconds to wait after the `failures`-th consecutive failure. The maximum wait doubles from
    `first_delay_seconds` up to `cap_seconds`; the number of retries is not limited.

    The wait is between half of this maximum and all of it. The jitter is derived from the batch id, so that the
    core stays deterministic and batches that failed together are not retried together.
    """
    ceiling = min(first_delay_seconds * 2.0 ** min(failures - 1, 30), cap_seconds)
    return ceiling * (0.5 + crc32(f"{batch_id}/{failures}".encode()) / 2**33)
