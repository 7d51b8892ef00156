"""Cloud Storage: the sink and its concurrent uploads."""
