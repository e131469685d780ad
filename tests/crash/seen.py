"""The one thing that a layer tells the lab besides a broken promise."""

from __future__ import annotations

__all__ = ["KnownState"]


class KnownState(Exception):
    """The point's state is one that was hit before, or there is none."""
