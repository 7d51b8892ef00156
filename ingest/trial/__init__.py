"""`replays-ingest try`: record yourself with a real SDK, and watch the recording.

    endpoint/    takes the envelopes of an SDK apart and produces Kafka messages, as Relay does
    sessions.py  sessions that the endpoint received, and how far they are stored
    shop.py      the shop page, the page that waits for a recording, and their handlers
    server.py    the HTTP server of endpoint and shop
    run.py       starts the system, the web pages and this server, and stops them
    static/      the pages; static/vendor is the SDK, built by sdk/

It is for one person on one machine. It is not a Relay: it does not scrub personal data and has no quotas.
"""
