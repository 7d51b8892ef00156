"""What the two sinks in Google Cloud have in common."""
