"""The contract suite: Runs the sink's BigQuery API calls on several servers, and compares the responses with
Google's documentation.

`rest.py` and `appends.py` contain the operations, `target.py` contains what they share, `servers.py` runs the
servers, and `page.py` generates docs/bigquery-contract.md from `result.json`.
"""
