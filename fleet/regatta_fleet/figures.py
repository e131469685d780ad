"""How figures are written for people: latency, size, share, power, age. The command line and the page share these.

Pure text in, text out. What was not measured is written as "unknown" or "–", never as 0.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regatta_protocol.measurement import PairedDrop
    from regatta_protocol.values import Accuracy, Power

__all__ = [
    "NOTHING",
    "accuracy",
    "age",
    "clock",
    "count",
    "counted",
    "energy",
    "latency",
    "lost",
    "one_line",
    "power",
    "printable",
    "ratio",
    "share",
    "size",
]

NOTHING = "–"

_SIZE_UNITS = ("KB", "MB", "GB", "TB")


def latency(latency_us: float | None) -> str:
    """Return a latency with three significant digits: `84.2 µs`, `1.25 ms`, `2.10 s`."""
    if latency_us is None:
        return NOTHING
    for limit, divisor, unit in ((1e3, 1.0, "µs"), (1e6, 1e3, "ms")):
        # 999.6 µs would round to "1000 µs": the unit is chosen after rounding to three digits.
        if float(f"{latency_us:.3g}") < limit:
            return f"{_three_digits(latency_us / divisor)} {unit}"
    return f"{_three_digits(latency_us / 1e6)} s"


def size(size_bytes: int | None) -> str:
    """Return a size in decimal units: `812 B`, `50.3 KB`, `4.28 MB`."""
    if size_bytes is None:
        return NOTHING
    if size_bytes < 1000:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in _SIZE_UNITS:
        value /= 1000
        if float(f"{value:.3g}") < 1000 or unit == _SIZE_UNITS[-1]:
            return f"{_three_digits(value)} {unit}"
    raise AssertionError("the last unit takes everything")


def share(value: float | None) -> str:
    """Return a share in [0, 1] as a percentage with one decimal: `96.4 %`."""
    return NOTHING if value is None else f"{value * 100:.1f} %"


def ratio(value: float | None) -> str:
    """Return how many times as much: `2.41×`."""
    return NOTHING if value is None else f"{_three_digits(value)}×"


def accuracy(measured: Accuracy | None, *, interval: bool = True) -> str:
    """Return the share of correct answers, with its 95 % interval: `96.4 % (94.1–97.8)`."""
    if measured is None:
        return NOTHING
    if not interval:
        return share(measured.value)
    low, high = measured.interval()
    return f"{share(measured.value)} ({low * 100:.1f}–{high * 100:.1f})"


def lost(drop: PairedDrop | None) -> str:
    """Return the points of accuracy lost against the reference, with the 95 % interval: `0.6 (-0.4–1.7)`, or `ref`."""
    if drop is None:
        return NOTHING
    if drop.low == drop.drop == drop.high == 0:
        return "ref"
    return f"{drop.drop * 100:.1f} ({drop.low * 100:.1f}–{drop.high * 100:.1f})"


def power(measured: Power | None) -> str:
    """Return the power, `1.84 W` or `≈ 1.84 W` when not measured, or `unknown`; the reason stands beside it."""
    if measured is None or measured.power_mw is None:
        return "unknown"
    about = "" if measured.method == "measured" else "≈ "
    if float(f"{measured.power_mw:.3g}") < 1000:
        return f"{about}{_three_digits(measured.power_mw)} mW"
    return f"{about}{_three_digits(measured.power_mw / 1000)} W"


def energy(measured: Power | None) -> str:
    """Return the energy of one inference, `0.412 mJ`, or `unknown`."""
    if measured is None or measured.energy_per_inference_mj is None:
        return "unknown"
    return f"{_three_digits(measured.energy_per_inference_mj)} mJ"


def count(number: int) -> str:
    """Return a whole number with thin separators: `12,345`."""
    return f"{number:,}"


def counted(number: int, noun: str) -> str:
    """Return how many there are: `1 device`, `12,345 devices`; the plural is made with an s."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def age(at: float | None, now: float) -> str:
    """Return how long ago `at` was: `now`, `12 s ago`, `3 min ago`, `2 h ago`, `5 d ago`, or `never`."""
    if at is None:
        return "never"
    elapsed_s = now - at
    if elapsed_s < 1:
        return "now"  # also when the two clocks disagree a little
    for limit_s, divisor_s, unit in ((90, 1, "s"), (5400, 60, "min"), (129_600, 3600, "h")):
        if elapsed_s < limit_s:
            return f"{elapsed_s / divisor_s:.0f} {unit} ago"
    return f"{elapsed_s / 86_400:.0f} d ago"


def clock(at: float | None) -> str:
    """Return a moment in UTC: `2026-03-01 12:30:05Z`, or `–`."""
    if at is None:
        return NOTHING
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")


def printable(text: str) -> str:
    """Return text safe for a terminal: every character that is not printable is a space.

    Escape sequences in a hostile reason must not move the cursor or recolor the operator's terminal.
    """
    return "".join(character if character.isprintable() else " " for character in text)


def one_line(text: str | None, limit: int = 2000) -> str:
    """Return text that a device or a model gave, for one line: printable, bounded, without runs of spaces."""
    if not text:
        return ""
    return " ".join(printable(text[:limit]).split()) + ("…" if len(text) > limit else "")


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3g}"
