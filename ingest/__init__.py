"""The reader consumes from Kafka, starts a chord of flush tasks per batch, and commits offsets as chords complete.

kafka.py       polls messages and converts changes of the consumer group to events
core/parse     converts bytes to a segment or a reject, with the rows for every sink
runtime.py     runs the loop: takes events, performs commands
core/pipeline  makes all decisions: batches (batching.py), offsets (ledger.py), pauses (backpressure.py), retries
dispatch.py    stages a batch in Redis, starts its chord, receives its completion
tasks/         the flush workers, which the reader reaches through Redis
"""
