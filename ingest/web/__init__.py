"""The web UI for stored replays, served on the loopback interface, and the queries that it uses.

    blobs.py     extracts the rrweb events and the video of a stored object
    timeline.py  extracts marks, memory samples and the times at which playback can start
    model.py     data types that `Reads` accepts and returns
    stores.py    the connections to ClickHouse and Cloud Storage
    replays.py   queries replays in ClickHouse
    segments.py  lists a replay's segments in order, from ClickHouse and Cloud Storage
    recordings.py  reads the bytes of segments, and builds the timeline
    reads.py     `Reads`: all queries for replays, segments and recordings
    selector.py  converts a CSS selector of a clicked element to conditions on rows
    evidence.py  finds the events around one event, and replays whose events contain a text
    present.py   converts the results of `Reads` to JSON
    journey.py   finds a segment's batch, if it is still in Redis
    operator_service.py  functions for operators, based on ingest.operate and tasks.operate
    login.py     logins: the printed link, passwords, sessions, and the delay after failed attempts
    server.py    the HTTP server; base.py, pages.py, api.py and operator.py are its handlers
    static/      the pages; static/vendor is rrweb-player, built by player/

Only the operator's functions write to sinks. Only the command line imports this package.
"""
