"""Compares a range of the topic with the sinks: reads it again and reports what is missing.

    replays-ingest reconcile --since 2h
    replays-ingest reconcile --partition 3 --start 1200 --stop 1900 --repair

    topic.py     a scope that an operator names -> spans of committed offsets -> their messages
    expected.py  messages -> what each sink should hold of them, without what was given up on purpose
    presence.py  asks one sink which of these items it does not hold
    recordings.py  asks that of Cloud Storage, in either layout
    repair.py    writes items again, at a bounded rate
    account.py   what came of it
    run.py       all of it, a chunk at a time
    render.py    the account for people

Only offsets that the group has committed are looked at: of the others the system has not claimed anything yet.
A repair writes what is missing and nothing else, through the sinks' own `write`, and asks again. Rows and objects
have identities, so a repair that overlaps with the reader's work is harmless.
"""

from ingest.operate.reconcile.account import Account, Missing, ReconcileFailed, Tally
from ingest.operate.reconcile.problem import Problem
from ingest.operate.reconcile.render import render
from ingest.operate.reconcile.run import run
from ingest.operate.reconcile.topic import Scope, Span

__all__ = ["Account", "Missing", "Problem", "ReconcileFailed", "Scope", "Span", "Tally", "render", "run"]
