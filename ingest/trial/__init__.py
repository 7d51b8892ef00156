"""`replays-ingest try`: record yourself with a real SDK, and watch the recording.

    endpoint/    splits the envelopes of an SDK and produces Kafka messages, as Relay does
    sessions.py  tracks the sessions that the endpoint received until every sink has stored them
    shop.py      the shop page, the page that waits for a recording, and their handlers
    server.py    the HTTP server for the endpoint and the shop
    run.py       starts the system, the web pages and this server, and stops them
    static/      the pages; static/vendor is the SDK, built by sdk/

The command is for one person on one machine. The endpoint does not replace Relay: it does not scrub personal data
and has no quotas.
"""
