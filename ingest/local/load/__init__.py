"""The load generator: recordings as a browser makes them, deliberate flaws, and the expected contents of sinks."""
