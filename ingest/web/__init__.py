"""Web UI for stored replays, on the loopback interface, and the reads behind it.

    blobs.py     one stored object -> its rrweb events and its video
    timeline.py  rrweb events -> marks, memory samples, times from which playback can start
    model.py     data types that the reads return
    stores.py    the connections to ClickHouse and Cloud Storage
    replays.py   ClickHouse -> a list of replays, one replay
    segments.py  ClickHouse and Cloud Storage -> its segments in order
    recordings.py  the bytes of its segments, and its timeline
    reads.py     all reads as one library
    selector.py  a CSS selector of clicked elements -> conditions on rows
    evidence.py  the events around one event, and replays whose events contain a text
    present.py   converts what the reads return to JSON
    journey.py   Redis -> the batch of a segment, if Redis still has it
    desk.py      functions for operators, based on ingest.operate and tasks.operate
    login.py     logins: the printed link, passwords, sessions, the delay after failed attempts
    server.py    the HTTP server; base.py, pages.py, api.py and operator.py are its handlers
    static/      the pages; static/vendor is rrweb-player, built by player/

Only the operator part writes to sinks, and only the command line imports this package.
"""
