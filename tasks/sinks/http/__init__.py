"""Code shared by the HTTP sinks: requests, and interpretation of responses."""
