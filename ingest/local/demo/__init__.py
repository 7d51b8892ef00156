"""The demo: runs the whole system on this machine, with a load, and reconciles the sinks."""
