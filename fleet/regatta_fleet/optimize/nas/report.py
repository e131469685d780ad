"""What a search step found over its seeds, for people (Markdown) and programs (JSON). Pure."""

from __future__ import annotations

from pydantic import Field

from regatta_fleet.optimize.nas.objective import SearchResult
from regatta_protocol.wire import Wire

__all__ = ["SearchReport", "search_markdown"]


class SearchReport(Wire):
    """Every search of a step: the strategy's, one a seed, and the control's with the same seeds."""

    results: tuple[SearchResult, ...] = Field(min_length=1)
    taken: int = 0  # place in `results` of the one whose best was taken
    verdict: str | None = None  # whether the strategy beats random search; None: there was one seed
    layers_timed: int
    space_size: int

    @property
    def chosen(self) -> SearchResult:
        return self.results[self.taken]


def search_markdown(report: SearchReport) -> str:
    """Return the report as a page."""
    chosen = report.chosen
    best = chosen.best
    measured = "" if chosen.measured_us is None else f", measured {chosen.measured_us:.1f} µs"
    lines = [
        f"# Architecture search by {chosen.strategy}",
        "",
        f"Taken: **{best.words}**: accuracy {best.accuracy:.4f} after {chosen.candidate_steps} training steps, "
        f"estimated {best.latency_us:.1f} µs{measured}, {best.macs:,} MACs, {best.weights:,} weights. "
        f"It was then trained for {chosen.final_steps} steps.",
        "",
        f"Of {report.space_size:,} architectures; latency from a table of {report.layers_timed} layers of "
        f"{chosen.latency_from}; target {chosen.target_us:.1f} µs.",
        "",
        "| strategy | seed | tried | training steps | time | best accuracy | its latency | reward | trained in full |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for result in report.results:
        trained = "–" if result.trained_accuracy is None else f"{result.trained_accuracy:.4f}"
        cells = (
            result.strategy,
            str(result.seed),
            str(len(result.tried)),
            str(result.steps),
            f"{result.duration_s:.1f} s",
            f"{result.best.accuracy:.4f}",
            f"{result.best.latency_us:.1f} µs",
            f"{result.best.reward:.4f}",
            trained,
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Against random search at the same budget: {report.verdict}." if report.verdict else _ONE_SEED]
    lines += ["", "Pareto front:", "", "| architecture | accuracy | latency | MACs |", "|---|--:|--:|--:|"]
    for at in chosen.front:
        one = chosen.tried[at]
        lines.append(f"| {one.words} | {one.accuracy:.4f} | {one.latency_us:.1f} µs | {one.macs:,} |")
    return "\n".join(lines) + "\n"


_ONE_SEED = "One seed says nothing about whether the strategy beats random search: `--seeds 5` does."
