"""The command line, with one file per group of commands.

`main.py` assembles the groups, and `common.py` has the code that they share.
"""
