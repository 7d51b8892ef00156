-- One row a segment: what arrived, how large it was, and where its bytes are.
CREATE TABLE IF NOT EXISTS replay_segments {on_cluster}
(
    org_id UInt64,
    project_id UInt64,
    replay_id UUID,
    segment_id UInt64,
    received DateTime,
    retention_days UInt16,
    object String,
    size_compressed UInt64,
    size_uncompressed UInt64,
    size_video UInt64,
    partition UInt16,
    offset UInt64
)
ENGINE = {replicated}ReplacingMergeTree
PARTITION BY (retention_days, toMonday(received))
ORDER BY (project_id, replay_id, segment_id)
TTL received + toIntervalDay(retention_days)
SETTINGS non_replicated_deduplication_window = 10000;

-- What is billed: one row a replay, when its first segment was accepted. Not partitioned by time, since parts of
-- different partitions never merge, and a replay that is sent again a week later must not count twice.
CREATE TABLE IF NOT EXISTS replay_outcomes {on_cluster}
(
    org_id UInt64,
    project_id UInt64,
    replay_id UUID,
    key_id Nullable(UInt64),
    category LowCardinality(String),
    outcome LowCardinality(String),
    quantity UInt32,
    timestamp DateTime
)
ENGINE = {replicated}ReplacingMergeTree
ORDER BY (org_id, project_id, replay_id)
SETTINGS non_replicated_deduplication_window = 10000;
