"""Reader observability: metrics, logs, traces, probes. Observes decisions and never makes any."""
