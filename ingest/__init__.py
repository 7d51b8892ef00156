"""The reader: consumes from Kafka, starts chords of flush tasks, and commits offsets when they have completed.

kafka.py       polls messages and turns what the consumer group does into events
core/parse     bytes become a segment or a reject, and the rows of every sink
runtime.py     turns the loop: events in, commands performed
core/pipeline  decides: batches (batching.py), offsets (ledger.py), pauses (backpressure.py), retries
dispatch.py    stages a batch in Redis, starts its chord, hears of its completion
tasks/         the flush fleet, on the other side of Redis
"""
