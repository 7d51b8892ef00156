"""The demo: runs the whole system on this machine, produces a load, and reconciles the sinks."""
