"""Audits retention: objects that the bucket keeps for too long, and rows whose object is missing.

    replays-ingest reconcile --expired

    bucket.py  every object of the bucket, sorted by name
    rows.py    every object that a row of ClickHouse refers to, in the same order
    audit.py   compares both streams and reports the result

Both modules yield sorted streams, so memory does not grow with the bucket.
"""

from ingest.operate.retention.audit import Audit, AuditFailed, Kept, Kind, audit, render

__all__ = ["Audit", "AuditFailed", "Kept", "Kind", "audit", "render"]
