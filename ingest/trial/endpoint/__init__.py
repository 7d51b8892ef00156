"""The endpoint of a DSN: takes envelopes of SDKs apart, as Relay does, and produces Kafka messages.

    refusals.py      reasons for which a request is refused, with their HTTP status
    body.py          the body of a request, decompressed within a limit
    envelope.py      an envelope -> its items
    recording.py     a recording -> the payload of a Kafka message
    user_agent.py    a User-Agent header -> browser, operating system, device
    replay_event.py  a replay event -> the normalized one
    messages.py      an envelope -> the Kafka messages in it
    handler.py       HTTP: keys, CORS, limits, counters

The formats are those of Sentry's developer documentation (envelopes, envelope items, event payloads). Sizes are
limited as in Relay's default configuration.
"""
