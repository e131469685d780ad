"""Whether a strategy beats random search: the same seeds and budgets, compared seed by seed. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Contest", "compare_seeds"]

_SURE = 0.05


@dataclass(frozen=True)
class Contest:
    """Rewards of a strategy beside those of random search, by seed."""

    wins: int
    ties: int
    seeds: int
    mean_gain: float
    p_value: float  # two-sided

    @property
    def verdict(self) -> str:
        """Return in words whether it wins, and how sure that is."""
        score = f"better in {self.wins} of {self.seeds} seeds, worse in {self.seeds - self.wins - self.ties}"
        gain = f"mean gain {self.mean_gain:+.4f}, p = {self.p_value:.3f}"
        if self.mean_gain > 0:
            sure = "beats random search" if self.p_value <= _SURE else "ahead of random search, which may be chance"
        else:
            sure = "does not beat random search"
        return f"{sure} ({score}, {gain})"


def compare_seeds(rewards: Sequence[float], control: Sequence[float]) -> Contest:
    """Return how the rewards stand beside the control's of the same seeds.

    p is of the exact sign-flip permutation test of the mean difference (Fisher 1935): five seeds reach 0.0625 at best.
    """
    gains = [one - other for one, other in zip(rewards, control, strict=True)]
    mean = sum(gains) / len(gains)
    flips = list(itertools.product((1, -1), repeat=len(gains)))
    as_far = sum(
        abs(sum(sign * gain for sign, gain in zip(signs, gains, strict=True))) >= abs(sum(gains)) - 1e-12
        for signs in flips
    )
    wins, ties = sum(gain > 0 for gain in gains), sum(gain == 0 for gain in gains)
    return Contest(wins, ties, len(gains), mean, as_far / len(flips))
