"""The command line, with one file per group of commands. `main.py` assembles them; `common.py` has shared code."""
