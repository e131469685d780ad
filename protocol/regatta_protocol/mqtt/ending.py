"""Why a connection is ended from our side: the first reason counts, and after it nothing more is done on it."""

from __future__ import annotations

__all__ = ["Ending"]


class Ending:
    """Shared by the parts of one connection, on the network's thread."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def because(self, reason: str) -> None:
        """End it, unless it is ending already."""
        self.reason = self.reason or reason
