"""Compares a range of the topic with the sinks: reads it again and reports what is missing.

    replays-ingest reconcile --since 2h
    replays-ingest reconcile --partition 3 --start 1200 --stop 1900 --repair

    topic.py     a scope given by an operator -> spans of committed offsets -> their messages
    expected.py  messages -> expected items of each sink, without those abandoned on purpose
    presence.py  queries one sink for missing items
    recordings.py  the same for Cloud Storage, in either layout
    repair.py    writes items again, at a bounded rate
    account.py   the result
    run.py       the whole reconciliation, one chunk at a time
    render.py    the result for people

Only offsets that the group has committed are compared; others are not durable yet.
A repair writes only missing items, through the sinks' own `write`, and checks again. Rows and objects
have identities, so a repair that overlaps with the reader's work is harmless.
"""

from ingest.operate.reconcile.account import Account, Missing, ReconcileFailed, Tally
from ingest.operate.reconcile.problem import Problem
from ingest.operate.reconcile.render import render
from ingest.operate.reconcile.run import run
from ingest.operate.reconcile.topic import Scope, Span

__all__ = ["Account", "Missing", "Problem", "ReconcileFailed", "Scope", "Span", "Tally", "render", "run"]
