"""Web UI for stored replays, on the loopback interface, and the reads behind it.

    blobs.py     one stored object -> its rrweb events and its video
    timeline.py  rrweb events -> marks, memory, when it can be played from
    model.py     what the reads return
    stores.py    the connections to ClickHouse and Cloud Storage
    replays.py   ClickHouse -> a list of replays, one replay
    segments.py  ClickHouse and Cloud Storage -> its segments in order
    recordings.py  their bytes, and the timeline in them
    reads.py     all reads as one library
    selector.py  which element was clicked, as conditions on rows
    evidence.py  what happened around an event, and replays in whose events a text occurs
    present.py   what the reads return, as JSON
    journey.py   Redis -> the batch that a segment travelled in, as far as Redis still knows
    desk.py      what an operator sees and does, over ingest.operate and tasks.operate
    login.py     who is let in: the printed link, passwords, sessions, the delay after wrong attempts
    server.py    all of it over HTTP; base.py, pages.py, api.py and operator.py are its handlers
    static/      the pages; static/vendor is rrweb-player, built by player/

Only the operator part writes to sinks, and only the command line imports this package.
"""
