"""The demo: the whole system on this machine, fed, watched, and held to account."""
