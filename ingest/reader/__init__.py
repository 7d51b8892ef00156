"""The reader process consumes from Kafka, starts chords of flush tasks, and commits offsets as chords complete."""
