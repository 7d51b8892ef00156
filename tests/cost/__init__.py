"""The cost of the most expensive messages: known shapes, a search for others, and the limit that all must meet."""
