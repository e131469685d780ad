"""What the agent decides, without doing anything: states, plans, verdicts, transfers.

Nothing here opens a file or a socket, sleeps, logs, or asks for the time or for randomness: those are arguments.
"""
