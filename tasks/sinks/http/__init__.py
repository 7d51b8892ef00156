"""What the sinks over HTTP have in common: requests, and what an answer is worth."""
