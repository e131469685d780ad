"""Races that are short, and that try every candidate however busy the machine is.

For tests that promise neither which of two like candidates is faster nor how a race keeps to its budget: the final
takes half a second in place of five, and nobody is left out because the others had taken half of the budget.
`python -m quick_race` is such a `python -m regatta_runtimes.race.run`.
"""

from __future__ import annotations

import sys

import pytest

from regatta_runtimes.race import final, heat, run

__all__ = ["quicken_races"]


def quicken_races(patch: pytest.MonkeyPatch) -> None:
    """Make the races of this process so, until the patch is undone."""
    patch.setattr(heat, "_QUALIFY_SHARE", 100.0)
    patch.setattr(final, "_SPAN_S", 0.3)
    patch.setattr(final, "_EXTRA_S", 0.2)


if __name__ == "__main__":
    quicken_races(pytest.MonkeyPatch())
    sys.exit(run.main())
