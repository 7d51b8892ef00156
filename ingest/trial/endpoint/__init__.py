"""The endpoint of a DSN: splits SDK envelopes, as Relay does, and produces Kafka messages.

    refusals.py      reasons for refusing a request, each with its HTTP status
    body.py          decompresses the body of a request, up to a limit
    envelope.py      splits an envelope into its items
    recording.py     converts a recording to the payload of a Kafka message
    user_agent.py    extracts browser, operating system and device from a User-Agent header
    replay_event.py  normalizes a replay event
    messages.py      converts an envelope to Kafka messages
    handler.py       HTTP: keys, CORS, limits, counters

The formats are described in Sentry's developer documentation (envelopes, envelope items, event payloads). Size
limits are those of Relay's default configuration.
"""
