"""Development tools; not in the wheel."""
