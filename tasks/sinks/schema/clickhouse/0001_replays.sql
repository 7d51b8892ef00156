-- One row an event of a replay: what its pages, clicks and context were. The identity is event_hash within
-- (project, day, replay): rows of one identity replace each other when parts merge, and at once with FINAL.
--
-- A click and its later slow-click event share event_hash. The row that says more wins, whichever came last, so
-- that a click which is delivered again does not bring a dead click back to life: hence click_rank.
--
-- cityHash64(replay_id) spreads a day's replays evenly, and makes a replay's rows neighbours.
-- The window makes insert_deduplication_token work without replication.
CREATE TABLE IF NOT EXISTS replays {on_cluster}
(
    replay_id UUID,
    replay_type LowCardinality(String),
    error_sample_rate Nullable(Float64),
    session_sample_rate Nullable(Float64),
    event_hash UUID,
    segment_id Nullable(UInt16),
    timestamp DateTime,
    replay_start_timestamp Nullable(DateTime),
    trace_ids Array(UUID),
    error_ids Array(UUID),
    title String,
    url String,
    urls Array(String),
    org_id UInt64,
    project_id UInt64,
    platform LowCardinality(String),
    environment LowCardinality(String),
    release String,
    dist String,
    ip_address_v4 Nullable(IPv4),
    ip_address_v6 Nullable(IPv6),
    user String,
    user_id String,
    user_name String,
    user_email String,
    user_geo_city LowCardinality(String),
    user_geo_country_code LowCardinality(String),
    user_geo_region LowCardinality(String),
    user_geo_subdivision LowCardinality(String),
    os_name LowCardinality(String),
    os_version LowCardinality(String),
    browser_name LowCardinality(String),
    browser_version LowCardinality(String),
    device_name LowCardinality(String),
    device_brand LowCardinality(String),
    device_family LowCardinality(String),
    device_model LowCardinality(String),
    sdk_name LowCardinality(String),
    sdk_version LowCardinality(String),
    tags Nested(key String, value String),
    click_node_id UInt32,
    click_tag LowCardinality(String),
    click_id String,
    click_class Array(String),
    click_text String,
    click_role LowCardinality(String),
    click_alt String,
    click_testid String,
    click_aria_label String,
    click_title String,
    click_component_name String,
    click_is_dead UInt8,
    click_is_rage UInt8,
    tap_message String,
    tap_view_class String,
    tap_view_id String,
    retention_days UInt16,
    partition UInt16,
    offset UInt64,
    click_rank UInt8 MATERIALIZED click_is_dead + click_is_rage
)
ENGINE = {replicated}ReplacingMergeTree(click_rank)
PARTITION BY (retention_days, toMonday(timestamp))
ORDER BY (project_id, toStartOfDay(timestamp), cityHash64(replay_id), event_hash)
TTL timestamp + toIntervalDay(retention_days)
SETTINGS non_replicated_deduplication_window = 10000;
