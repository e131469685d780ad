"""Pruning: which filters a network can do without (`filters`), and how its layers hang together (`coupling`)."""
