"""What a reader shows of itself: metrics, logs, traces, probes. Observes decisions and never takes any."""
