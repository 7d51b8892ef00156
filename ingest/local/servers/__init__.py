"""The servers of the embedded stack, one file per server; `bigquery` is a package."""
