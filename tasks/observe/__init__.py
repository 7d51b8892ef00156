"""Worker observability: metrics, logs, traces, probes."""
