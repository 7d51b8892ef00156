"""The command line: one file per group of commands. `main.py` assembles them; `common.py` is what they share."""
