"""The specification of the commit protocol: checked exhaustively, and histories of runs held against it."""
