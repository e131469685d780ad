"""The agent as a process: lean bytecode, what stays unloaded, the alarm, and pauses between restarts."""
