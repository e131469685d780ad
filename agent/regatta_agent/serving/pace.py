"""Whether a placement has become slower than its race said, by more than the policy allows. Pure.

Inferences are looked at in windows of so many, of a tenth of a second when so many take longer, or of so many seconds
when they come rarely; a window's figure is its median, so that single slow ones count for nothing, and only several
slow windows in a row count. That the placement is slow does not say why: a comparison with the next best one, now,
tells it from the load of the machine.
"""

from __future__ import annotations

__all__ = ["Drift", "Pace", "is_faster"]

_WINDOW = 50
_WINDOW_NS = 100_000_000  # so that one of 20 ms an inference has been compared with the next best within a second
_PATIENCE_NS = 10_000_000_000  # for _LEAST
_LEAST = 5  # in a window that its time has ended
_SLOW_WINDOWS = 2
_DRIFT_RATIO = 1.5  # of the race's median; rounds of one race differ by 10 % (judge.py), by heat perhaps 30 %
_DRIFT_LOOKS = 3
_CLEARLY = 0.8  # of the other's time: what is closer would change places for nothing


class Pace:
    """The recent inferences of one placement."""

    def __init__(self, expected_us: float | None, max_slowdown: float) -> None:
        """Keep what the race measured; None: nothing is ever called slow."""
        self._limit_us = None if expected_us is None else expected_us * max_slowdown
        self._samples: list[int] = []
        self._window_began_ns = 0
        self._slow_windows = 0
        self.median_us: float | None = None  # of the last whole window

    def add(self, compute_ns: int, now_ns: int) -> bool:
        """Count an inference; return whether the placement has just turned out to be slow."""
        if self._limit_us is None:
            return False
        if not self._samples:
            self._window_began_ns = now_ns
        self._samples.append(compute_ns)
        enough = len(self._samples) >= _LEAST
        ended = now_ns - self._window_began_ns >= (_WINDOW_NS if enough else _PATIENCE_NS)
        if len(self._samples) < _WINDOW and not ended:
            return False
        if enough:
            self.median_us = sorted(self._samples)[len(self._samples) // 2] / 1000
            slow = self.median_us > self._limit_us
            self._slow_windows = self._slow_windows + 1 if slow else 0
        self._samples.clear()
        if self._slow_windows < _SLOW_WINDOWS:
            return False
        self._slow_windows = 0
        return enough


class Drift:
    """Looks at a placement's latency beside its race's, each on a quiet machine and far apart."""

    def __init__(self) -> None:
        self._placement = ""
        self._slow_looks = 0

    def add(self, placement: str, ratio: float) -> bool:
        """Count a look, `ratio` times as slow as in the race; return whether it now counts as drift (told once)."""
        if placement != self._placement:
            self._placement, self._slow_looks = placement, 0
        self._slow_looks = self._slow_looks + 1 if ratio > _DRIFT_RATIO else 0
        return self._slow_looks == _DRIFT_LOOKS


def is_faster(one_us: float, other_us: float) -> bool:
    """Return whether `one_us` is clearly less, so that changing places is worth it."""
    return one_us < _CLEARLY * other_us
