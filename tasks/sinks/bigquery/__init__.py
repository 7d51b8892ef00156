"""BigQuery: the sink, proof of writes, and table checks."""
