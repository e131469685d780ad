"""A race as a picture: each candidate's latency from p50 to p99, and accuracy against latency where it is known.

matplotlib (the extra [plot]) is imported here and nowhere else, only when a picture is asked for. No window is ever
opened: the figure is drawn straight into the file.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from regatta_protocol.measurement import CandidateResult, Outcome, RaceReport
from regatta_runtimes.choice.pareto import dominates
from regatta_runtimes.choice.report import ranked, words_of

__all__ = ["draw_race", "race_figure"]

# Okabe and Ito's palette: told apart by the color-blind too.
_PLACED, _MEASURED, _DROPPED, _INACCURATE, _FAILED = "#009E73", "#0072B2", "#9A9A9A", "#E69F00", "#D55E00"
_COLORS = {Outcome.MEASURED: _MEASURED, Outcome.DROPPED: _DROPPED, Outcome.INACCURATE: _INACCURATE}
_MAX_ROWS = 40  # more cannot be read; the best are drawn and the rest are counted
_LOGARITHMIC = 10.0  # times from the fastest to the slowest: beyond it a linear axis hides the fast ones
_ROW_INCHES, _FRAME_INCHES = 0.30, 1.9
_WIDTH_INCHES, _WIDE_INCHES = 9.5, 15.0
_DOTS_PER_INCH = 144


def draw_race(report: RaceReport, path: Path) -> None:
    """Write the picture; the file's suffix, .svg or .png, says as what.

    Raises:
        OSError: when it cannot be written.
    """
    race_figure(report).savefig(path, dpi=_DOTS_PER_INCH)


def race_figure(report: RaceReport) -> Figure:
    """Return the figure of a race."""
    timed = [result for result in ranked(report) if result.latency is not None]
    shown = timed[:_MAX_ROWS]
    accurate = [result for result in timed if result.accuracy is not None]
    height = _FRAME_INCHES + _ROW_INCHES * max(len(shown), 8)
    figure = Figure(figsize=(_WIDE_INCHES if accurate else _WIDTH_INCHES, height), layout="constrained")
    figure.suptitle(_title(report), fontsize=11, fontweight="bold", x=0.01, ha="left")
    if accurate:
        latency, accuracy = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_accuracy(accuracy, accurate, report)
    else:
        latency = figure.subplots()
    _draw_latency(latency, shown, report)
    figure.supxlabel(_footnote(report, len(timed) - len(shown)), fontsize=8, color="#555555", x=0.01, ha="left")
    return figure


def _draw_latency(axes: Axes, shown: list[CandidateResult], report: RaceReport) -> None:
    axes.set_title("Latency of one inference: ● p50   | p90   — to p99", fontsize=10, loc="left")
    if not shown:
        axes.text(0.5, 0.5, "no candidate could be timed", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    for row, result in enumerate(shown):
        latency = result.latency
        assert latency is not None, "only timed candidates are shown"
        color, placed = _color(result, report), result.id == report.placement
        axes.hlines(row, latency.p50_us, latency.p99_us, color=color, linewidth=5, alpha=0.45)
        axes.plot(latency.p90_us, row, marker="|", color=color, markersize=9, markeredgewidth=1.6)
        axes.plot(latency.p50_us, row, marker="*" if placed else "o", color=color, markersize=15 if placed else 6)
        axes.annotate(
            _time(latency.p50_us),
            (latency.p99_us, row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="#333333",
            fontweight="bold" if placed else "normal",
        )
    axes.set_yticks(range(len(shown)), [result.id for result in shown], fontsize=8)
    for label, result in zip(axes.get_yticklabels(), shown, strict=True):
        label.set_fontweight("bold" if result.id == report.placement else "normal")
    axes.set_ylim(len(shown) - 0.4, -0.6)
    _scale_time(axes, shown, room_right=1.35)
    axes.legend(
        handles=_legend(shown, report),
        fontsize=8,
        loc="lower left",
        bbox_to_anchor=(0.62, 1.0),
        ncols=3,
        frameon=False,
    )


def _draw_accuracy(axes: Axes, accurate: list[CandidateResult], report: RaceReport) -> None:
    axes.set_title("Accuracy against latency (line: the Pareto front of the two)", fontsize=10, loc="left")
    points = {
        result.id: (result.latency.p50_us, result.accuracy.value * 100)
        for result in accurate
        if result.latency is not None and result.accuracy is not None
    }
    front = sorted(
        (point for point in set(points.values()) if not any(_beats(other, point) for other in points.values())),
    )
    axes.step([x for x, _ in front], [y for _, y in front], where="post", color="#444444", linewidth=1, linestyle="--")
    for result in reversed(accurate):  # the best last, on top
        placed = result.id == report.placement
        axes.plot(
            *points[result.id],
            marker="*" if placed else "o",
            markersize=15 if placed else 7,
            color=_color(result, report),
            markeredgecolor="white",
            linestyle="none",
        )
    named: set[tuple[float, float]] = set()
    for result in accurate:
        if points[result.id] in front and points[result.id] not in named:
            named.add(points[result.id])
            axes.annotate(result.id, points[result.id], xytext=(7, -11), textcoords="offset points", fontsize=8)
    axes.set_ylabel("accuracy, %", fontsize=9)
    axes.margins(y=0.15)
    _scale_time(axes, accurate, room_right=1.6)


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return dominates((one[0], -one[1]), (other[0], -other[1]))


def _scale_time(axes: Axes, results: list[CandidateResult], *, room_right: float) -> None:
    """Set up the time axis, with room for the texts at its right."""
    shortest = min(result.latency.p50_us for result in results if result.latency is not None)
    longest = max(result.latency.p99_us for result in results if result.latency is not None)
    if longest > shortest * _LOGARITHMIC:
        axes.set_xscale("log")
        axes.set_xlim(shortest / 1.4, longest * room_right**2)
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, longest * room_right)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: _time(value)))
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(axis="x", which="major", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _color(result: CandidateResult, report: RaceReport) -> str:
    return _PLACED if result.id == report.placement else _COLORS.get(result.outcome, _FAILED)


def _legend(shown: list[CandidateResult], report: RaceReport) -> list[Line2D]:
    """Return one entry a color that is in the picture."""
    entries: dict[str, str] = {}
    for result in shown:
        placed = result.id == report.placement
        words = "placed" if placed else words_of(result.outcome)
        entries.setdefault(words, _color(result, report))
    return [
        Line2D([], [], color=color, marker="*" if words == "placed" else "o", linestyle="none", label=words)
        for words, color in entries.items()
    ]


def _title(report: RaceReport) -> str:
    winner = report.placed()
    if winner is None or winner.latency is None:
        return f"{report.model}: nothing was placed"
    return f"Placed: {winner.id}, p50 {_time(winner.latency.p50_us)}"


def _footnote(report: RaceReport, left_out: int) -> str:
    board = report.board
    parts = [board.model or board.cpu or board.machine or "unknown board", f"race of {report.duration_s:.1f} s"]
    failed: dict[str, int] = {}
    for result in report.candidates:
        if result.latency is None:
            words = words_of(result.outcome)
            failed[words] = failed.get(words, 0) + 1
    if failed:
        parts.append("not timed: " + ", ".join(f"{words} ({count})" for words, count in failed.items()))
    if left_out:
        parts.append(f"{left_out} slower candidates are not drawn")
    return " · ".join(parts)


def _time(latency_us: float) -> str:
    """Return a time with three significant digits."""
    for limit, size, unit in ((1e3, 1.0, "µs"), (1e6, 1e3, "ms")):
        if float(f"{latency_us:.3g}") < limit:
            return f"{latency_us / size:.3g} {unit}"
    return f"{latency_us / 1e6:.3g} s"
