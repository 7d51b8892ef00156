-- Every range of a packed object that ever held a segment: the index `replay_objects` keeps one row a segment, and a
-- segment that was delivered twice lies in two objects. Playing needs one of them, erasing needs both.
CREATE TABLE IF NOT EXISTS replay_places {on_cluster}
(
    project_id UInt64,
    replay_id UUID,
    segment_id UInt64,
    received DateTime,
    retention_days UInt16,
    object String,
    start_bytes UInt64,
    length_bytes UInt64
)
ENGINE = {replicated}ReplacingMergeTree
PARTITION BY (retention_days, toMonday(received))
ORDER BY (project_id, replay_id, segment_id, object, start_bytes)
TTL received + toIntervalDay(retention_days)
SETTINGS non_replicated_deduplication_window = 10000;

CREATE MATERIALIZED VIEW IF NOT EXISTS replay_places_view {on_cluster} TO replay_places AS
SELECT project_id, replay_id, segment_id, received, retention_days, object, start_bytes, length_bytes
FROM replay_objects;
