-- What newer SDKs say of a session: the names of its segments, and the over-the-air update that a mobile app ran.
ALTER TABLE replays {on_cluster} ADD COLUMN IF NOT EXISTS segment_names Array(String) AFTER urls;
ALTER TABLE replays {on_cluster} ADD COLUMN IF NOT EXISTS ota_updates_channel LowCardinality(String) AFTER sdk_version;
ALTER TABLE replays {on_cluster} ADD COLUMN IF NOT EXISTS ota_updates_runtime_version LowCardinality(String) AFTER ota_updates_channel;
ALTER TABLE replays {on_cluster} ADD COLUMN IF NOT EXISTS ota_updates_update_id String AFTER ota_updates_runtime_version;
