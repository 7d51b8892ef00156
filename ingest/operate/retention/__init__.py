"""Audits retention: objects that the bucket keeps for too long, and rows whose object is missing.

    replays-ingest reconcile --expired

    bucket.py  every object in the bucket, sorted by name
    rows.py    every object that a row in ClickHouse refers to, in the same order
    audit.py   compares both streams and reports the result

`bucket.py` and `rows.py` yield sorted streams, so memory use does not grow with the size of the bucket.
"""

from ingest.operate.retention.audit import Audit, AuditFailed, Kind, RetentionFinding, audit, render

__all__ = ["Audit", "AuditFailed", "Kind", "RetentionFinding", "audit", "render"]
