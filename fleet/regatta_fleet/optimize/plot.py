"""Pictures of an optimization and of a search: accuracy against size and latency, with the Pareto front.

matplotlib (the extra [plot]) is imported here and nowhere else, only when a picture is asked for. No window is ever
opened, and the same figures give the same SVG.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec

from regatta_fleet.optimize.nas.report import SearchReport
from regatta_fleet.optimize.report import OptimizeReport, VariantReport
from regatta_runtimes.choice.pareto import dominates

__all__ = ["can_plot", "plot_search", "plot_variants"]

# Okabe and Ito's palette: told apart by the color-blind too.
_CHOSEN, _KEPT, _REFUSED, _FRONT = "#009E73", "#0072B2", "#D55E00", "#9A9A9A"
_SERIES = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#D55E00")
_DOTS_PER_INCH = 144
Point = tuple[str, float, float, str]  # label, x, y, color


def can_plot() -> bool:
    """Say whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def plot_variants(report: OptimizeReport) -> dict[str, bytes]:
    """Return SVG and PNG by file name: the variants' quality against size and p50; none when none has a figure.

    Quality is accuracy, or the hook's score, or else the output's SNR.
    """
    quality, words = _quality(report)
    sizes = [
        _point(report, variant, variant.size_bytes / 1000, quality[variant.name])
        for variant in report.variants
        if variant.name in quality and variant.size_bytes
    ]
    times = [
        _point(report, variant, variant.latency.p50_us, quality[variant.name])
        for variant in report.variants
        if variant.name in quality and variant.latency is not None
    ]
    if not sizes:
        return {}
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, points, label in ((left, sizes, "size, KB"), (right, times, f"p50, µs ({report.machine})")):
        _scatter(axes, points)
        axes.set_xlabel(label)
        axes.set_ylabel(words)
        axes.grid(alpha=0.25)
    figure.suptitle(f"{report.source}, optimized: recommended {report.recommended}", fontsize=11, x=0.01, ha="left")
    return _files(figure, "report")


def plot_search(report: SearchReport) -> dict[str, bytes]:
    """Return SVG and PNG by file name: every candidate's accuracy against its latency, and the front."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5), layout="constrained")
    axes = figure.subplots()
    strategies = list(dict.fromkeys(result.strategy for result in report.results))
    for result in report.results:
        color = _SERIES[strategies.index(result.strategy) % len(_SERIES)]
        label = result.strategy if result.seed == report.chosen.seed else None
        xs, ys = [one.latency_us for one in result.tried], [one.accuracy for one in result.tried]
        axes.plot(xs, ys, "o", color=color, markersize=4, alpha=0.6, label=label)
    chosen = report.chosen
    front = [chosen.tried[at] for at in chosen.front]
    axes.step([one.latency_us for one in front], [one.accuracy for one in front], where="post", color=_FRONT)
    axes.plot(chosen.best.latency_us, chosen.best.accuracy, "*", color=_CHOSEN, markersize=16, label="taken")
    axes.axvline(chosen.target_us, color="#555555", linestyle=":", linewidth=1, label="target")
    axes.set_xlabel(f"estimated latency, µs ({chosen.latency_from})")
    axes.set_ylabel(f"accuracy after {chosen.candidate_steps} training steps")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    axes.set_title(
        f"{len(chosen.tried)} architectures by {chosen.strategy}, seed {chosen.seed}", fontsize=10, loc="left"
    )
    return _files(figure, "search")


def _quality(report: OptimizeReport) -> tuple[dict[str, float], str]:
    scores = {variant.name: variant.score for variant in report.variants if variant.score is not None}
    if scores:
        return scores, "score of the hook evaluate"
    known = {variant.name: variant.accuracy.value for variant in report.variants if variant.accuracy is not None}
    if known:
        return known, "accuracy"
    noises = {variant.name: variant.snr_db for variant in report.variants[1:] if variant.snr_db is not None}
    return noises, "output SNR against float, dB"


def _point(report: OptimizeReport, variant: VariantReport, x: float, y: float) -> Point:
    kept = _CHOSEN if variant.name == report.recommended and variant.accepted else _KEPT
    return variant.name, x, y, kept if variant.accepted else _REFUSED


def _scatter(axes: object, points: Sequence[Point]) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    costs = {(x, -y) for _, x, y, _ in points}
    front = sorted(cost for cost in costs if not any(dominates(other, cost) for other in costs))
    axes.step([x for x, _ in front], [-y for _, y in front], where="post", color=_FRONT, linewidth=1)
    for name, x, y, color in points:
        axes.plot(x, y, "o", color=color, markersize=7)
        axes.annotate(name, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.margins(0.15)


def _files(figure: object, name: str) -> dict[str, bytes]:
    import matplotlib
    from matplotlib.figure import Figure

    assert isinstance(figure, Figure)
    found = {}
    with matplotlib.rc_context({"svg.hashsalt": "regatta"}):
        for suffix, facts in (("svg", {"Date": None}), ("png", {"Software": None})):
            content = io.BytesIO()
            figure.savefig(content, format=suffix, dpi=_DOTS_PER_INCH, metadata=facts)
            found[f"{name}.{suffix}"] = content.getvalue()
    return found
