"""The command line: one file per group of commands. `main.py` assembles them; `common.py` has what they share."""
