"""ClickHouse: the sink, and the classes of its errors."""
