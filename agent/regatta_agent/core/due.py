"""Whether the wait that a version was put into is still on. Pure."""

from __future__ import annotations

from regatta_agent.core.facts import SPACE_CAME_BYTES, Facts
from regatta_agent.core.installs import Install

__all__ = ["due_later"]

_LONGEST_S = 2 * 3600.0  # no wait is longer


def due_later(install: Install, facts: Facts) -> bool:
    """Return whether a back-off is still running; one that lies absurdly far off is a clock that jumped."""
    space_bytes = facts.free_bytes + facts.run_free_bytes
    if install.full_at_bytes is not None and space_bytes >= install.full_at_bytes + SPACE_CAME_BYTES:
        return False
    return install.not_before is not None and facts.now_s < install.not_before < facts.now_s + _LONGEST_S
