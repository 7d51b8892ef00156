"""Reads a range of the topic again, compares it with the sinks, and reports missing items.

    replays-ingest reconcile --since 2h
    replays-ingest reconcile --partition 3 --start 1200 --stop 1900 --repair

    topic.py     converts an operator's scope to spans of committed offsets, and reads their messages
    expected.py  computes the items of each sink that the messages should have produced
    presence.py  queries one sink for missing items
    recordings.py  queries Cloud Storage, in either layout
    repair.py    writes items again at a bounded rate
    account.py   the result
    run.py       runs the reconciliation, one chunk at a time
    render.py    formats the result as text

Only messages whose offsets the group has committed are compared, because other messages are not durable yet.
A repair writes only missing items, through the sinks' own `write`, and checks again. Rows and objects
have identities, so a repair that overlaps with the reader's work is harmless.
"""

from ingest.operate.reconcile.account import Account, MissingItem, ReconcileFailed, Tally
from ingest.operate.reconcile.problem import Problem
from ingest.operate.reconcile.render import render
from ingest.operate.reconcile.run import run
from ingest.operate.reconcile.topic import Scope, Span

__all__ = ["Account", "MissingItem", "Problem", "ReconcileFailed", "Scope", "Span", "Tally", "render", "run"]
