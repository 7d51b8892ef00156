"""Audits retention: what the bucket keeps for too long, and which rows point at an object that is not there.

    replays-ingest reconcile --expired

    bucket.py  every object of the bucket, in the order of names
    rows.py    every object that a row of ClickHouse points at, in the same order
    audit.py   both, side by side, and what came of it

Each side is a sorted stream, so memory does not grow with the bucket.
"""

from ingest.operate.retention.audit import Audit, AuditFailed, Kept, Kind, audit, render

__all__ = ["Audit", "AuditFailed", "Kept", "Kind", "audit", "render"]
