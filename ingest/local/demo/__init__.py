"""The demo: runs the whole system on this machine, generates load, and reconciles the sinks."""
