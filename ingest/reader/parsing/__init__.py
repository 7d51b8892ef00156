"""Parsing in the loop (`inline`), or in child processes that read messages from shared memory (`link`,
`child`)."""
