"""What the worst messages cost: the shapes that are known, a search for more, and the bound that all must keep."""
