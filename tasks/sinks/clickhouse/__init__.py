"""ClickHouse: the sink and its error classification."""
