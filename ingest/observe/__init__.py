"""Reader observability: metrics, logs, traces, probes. This package makes no decisions."""
