"""The load generator: what a browser would have recorded, what is wrong with it, and what must come of it."""
