-- Where a recording lies in an object that holds many: one row a segment of the layout `packed`, exact with FINAL.
-- `name` is the object that the layout `segment` would have made.
CREATE TABLE IF NOT EXISTS replay_objects {on_cluster}
(
    project_id UInt64,
    replay_id UUID,
    segment_id UInt64,
    received DateTime,
    retention_days UInt16,
    name String,
    object String,
    start_bytes UInt64,
    length_bytes UInt64
)
ENGINE = {replicated}ReplacingMergeTree
PARTITION BY (retention_days, toMonday(received))
ORDER BY (project_id, replay_id, segment_id)
TTL received + toIntervalDay(retention_days)
SETTINGS non_replicated_deduplication_window = 10000;
