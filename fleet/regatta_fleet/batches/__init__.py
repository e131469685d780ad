"""Batch jobs on devices, and their outputs on the way to the server."""
