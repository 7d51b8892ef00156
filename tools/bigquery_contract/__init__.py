"""The contract suite: Compares BigQuery's API, as the sink uses it, with Google's documentation on several
servers.

`rest.py` and `appends.py` contain the operations, `target.py` contains what they share, `servers.py` runs the
servers, and `page.py` generates docs/bigquery-contract.md from `result.json`.
"""
