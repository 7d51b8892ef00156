"""The load generator: realistic recordings with deliberate flaws, and the expected contents of the sinks."""
