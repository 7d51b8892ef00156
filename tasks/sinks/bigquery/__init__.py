"""BigQuery: the sink, what its answers prove, and whether its table takes rows."""
