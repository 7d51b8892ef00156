"""The contract suite: BigQuery's API as the sink uses it, judged by Google's documentation on several servers.

`rest.py` and `appends.py` have the operations, `target.py` what they share, `servers.py` the servers, `page.py`
generates docs/bigquery-contract.md from `result.json`.
"""
