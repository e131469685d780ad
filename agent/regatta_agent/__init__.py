"""The daemon on each board: one loop that owns the state; models run in worker processes."""
