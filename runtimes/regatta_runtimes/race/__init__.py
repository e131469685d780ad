"""The race itself: its heats in their order, its files, and what an earlier race still answers for."""
