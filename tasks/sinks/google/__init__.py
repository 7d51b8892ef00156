"""Code shared by the two Google Cloud sinks."""
