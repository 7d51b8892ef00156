"""For those who work on this project; not in the wheel."""
