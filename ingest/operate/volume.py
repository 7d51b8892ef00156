"""Volume of a project, shown before its messages are dropped."""

from __future__ import annotations

from ingest.settings import Settings
from tasks.sinks.clickhouse.sink import client

WINDOW_SECONDS = 3600
ANSWER_SECONDS_MAX = 3.0


def volume_text(settings: Settings, project_id: int) -> str:
    """Returns the project's number of segments in the last hour and its share of all segments, from ClickHouse, or
    the error.
    """
    query = (
        "SELECT uniqExactIf((replay_id, segment_id), project_id = {project:UInt64}), "
        "uniqExact((project_id, replay_id, segment_id)) "
        "FROM replay_segments WHERE received >= now() - {window:UInt32}"
    )
    bounded = settings.model_copy(update={"sink_timeout_seconds": ANSWER_SECONDS_MAX})
    try:
        server = client(bounded)
        try:
            found = server.query(query, parameters={"project": project_id, "window": WINDOW_SECONDS})
            own, whole = found.result_rows[0]
        finally:
            server.close()
    except Exception as error:  # operators must be able to act while ClickHouse is unavailable
        return f"its volume is unknown: ClickHouse: {type(error).__name__}"
    share = 100 * own / whole if whole else 0.0
    return f"{own:,} stored segments in the last hour, {share:.1f} % of all"
