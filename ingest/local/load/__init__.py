"""The load generator: realistic browser recordings, deliberate flaws, and the expected contents of sinks."""
