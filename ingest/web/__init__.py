"""What was ingested, to look at: reads, commands over them, and pages on the loopback interface.

    blobs.py     one stored object -> its rrweb events and its video
    timeline.py  rrweb events -> marks, memory, when it can be played from
    model.py     what the reads return
    reads.py     ClickHouse and Cloud Storage -> a list of replays, one replay, its segments
    journey.py   Redis -> the batch that a segment travelled in, as far as Redis still knows
    desk.py      what an operator sees and does (the only door to ingest and to tasks.operate)
    server.py    all of it over HTTP, for a browser on this machine
    commands.py  replays, events, fetch, web
    static/      the pages; static/vendor is rrweb-player, built by player/

Nothing here writes to a sink, and nothing but the command line imports it.
"""
