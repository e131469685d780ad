"""The picture of a soak: a row for each program, a column for each figure, the trend's slope drawn through."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from soak.sampling import ALLOWED, Samples

__all__ = ["draw"]

_TITLES = {"pss_mb": "PSS, MB", "anonymous_mb": "anonymous, MB", "disk_mb": "disk, MB"}
_INK, _MUTED, _DRIFT = "#1f4e79", "#8a8f98", "#b3261e"


def draw(samples: Samples, faults: Sequence[tuple[float, str]], path: Path) -> None:
    """Write a PNG. Each fault is a thin line; a figure that drifts is red."""
    trends = samples.trends()
    programs = list(dict.fromkeys(program for program, _ in samples.values))
    begin_s = min(times[0] for times in samples.times_s.values())
    figure = Figure(figsize=(3.4 * len(ALLOWED), 2.4 * len(programs)), layout="constrained")
    axes = figure.subplots(len(programs), len(ALLOWED), squeeze=False, sharex=True)
    for row, program in enumerate(programs):
        for column, name in enumerate(ALLOWED):
            place, values = axes[row][column], samples.values.get((program, name))
            if values is None:
                place.set_axis_off()
                continue
            trend = trends[program, name]
            drifts = trend is not None and trend.drifts
            minutes = [(time_s - begin_s) / 60 for time_s in samples.times_s[program, name]]
            for at_s, _ in faults:
                place.axvline((at_s - begin_s) / 60, color=_MUTED, linewidth=0.4, alpha=0.5)
            place.plot(minutes, values, color=_DRIFT if drifts else _INK, linewidth=1.1)
            if trend is not None:
                middle = minutes[-1] * 0.625
                ends = [minutes[-1] * 0.25, minutes[-1]]
                line = [trend.median + trend.slope_per_h * (end - middle) / 60 for end in ends]
                place.plot(ends, line, color=_MUTED, linestyle="--", linewidth=1)
            place.set_title(f"{program}: {_TITLES.get(name, name)}", fontsize=9, loc="left")
            place.set_ylim(bottom=0, top=max(values) * 1.15 or 1)
            place.spines[["top", "right"]].set_visible(False)
            if row == len(programs) - 1:
                place.set_xlabel("minutes")
    figure.savefig(path, dpi=110)
