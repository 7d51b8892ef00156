"""Shared by the two Google Cloud sinks."""
