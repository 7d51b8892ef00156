"""All operations of the suite, in the order of the page."""

from __future__ import annotations

from tools.bigquery_contract import appends, rest

OPERATIONS = (*rest.OPERATIONS, *appends.OPERATIONS)
