"""The embedded stack, the load generator and the demo. Needs the extra `local`."""
