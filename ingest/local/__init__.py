"""The embedded stack, the load generator and the demo. The package needs the extra `local`."""
