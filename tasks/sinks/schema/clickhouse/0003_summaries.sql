-- One row a replay and day, kept up to date by every insert. All of its states are sets, least or greatest values,
-- so rows that arrive twice change nothing: exact without FINAL. Read it with the -Merge functions:
--
--   SELECT replay_id, uniqExactMerge(segments), uniqExactMerge(clicks), uniqExactMerge(dead_clicks)
--   FROM replay_summaries WHERE project_id = 1 GROUP BY replay_id
--
-- A click that turned out dead is in both sets, as it should be.
CREATE TABLE IF NOT EXISTS replay_summaries {on_cluster}
(
    project_id UInt64,
    day Date,
    replay_id UUID,
    retention_days SimpleAggregateFunction(max, UInt16),
    first_at SimpleAggregateFunction(min, DateTime),
    last_at SimpleAggregateFunction(max, DateTime),
    segments AggregateFunction(uniqExact, Nullable(UInt16)),
    clicks AggregateFunction(uniqExactIf, UUID, UInt8),
    dead_clicks AggregateFunction(uniqExactIf, UUID, UInt8),
    rage_clicks AggregateFunction(uniqExactIf, UUID, UInt8),
    errors AggregateFunction(uniqExactArray, Array(UUID)),
    urls AggregateFunction(uniqExactArray, Array(String))
)
ENGINE = {replicated}AggregatingMergeTree
PARTITION BY toStartOfMonth(day)
ORDER BY (project_id, day, replay_id)
TTL day + toIntervalDay(retention_days)
SETTINGS non_replicated_deduplication_window = 10000;

CREATE MATERIALIZED VIEW IF NOT EXISTS replay_summaries_view {on_cluster} TO replay_summaries AS
SELECT
    project_id,
    toDate(timestamp) AS day,
    replay_id,
    max(retention_days) AS retention_days,
    min(timestamp) AS first_at,
    max(timestamp) AS last_at,
    uniqExactState(segment_id) AS segments,
    uniqExactIfState(event_hash, (click_node_id > 0 OR click_tag != '')::UInt8) AS clicks,
    uniqExactIfState(event_hash, click_is_dead) AS dead_clicks,
    uniqExactIfState(event_hash, click_is_rage) AS rage_clicks,
    uniqExactArrayState(error_ids) AS errors,
    uniqExactArrayState(urls) AS urls
FROM replays
GROUP BY project_id, day, replay_id;
