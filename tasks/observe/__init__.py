"""What a worker shows of itself: metrics, logs, traces, probes."""
