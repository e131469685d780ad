"""The worker's figures: OpenMetrics 1.0 text, and Triton's statistics extension as a document. Pure.

Names mirror Triton's: what it calls nv_inference_queue_duration_us is regatta_inference_queue_duration_seconds here (a
summary, for the sketch has the quantiles), and so on; docs/serving.md lists them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from regatta_agent.serving.window import Outcome, Stage, Tally, Totals
from regatta_protocol import sketch

__all__ = ["CONTENT_TYPE", "openmetrics", "statistics"]

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_QUANTILES = (0.5, 0.9, 0.99)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_STAGES = {
    Stage.REQUEST: "From the whole request to its answer",
    Stage.QUEUE: "Waiting for its turn",
    Stage.COMPUTE_INPUT: "Reading and checking a request and making the model's inputs",
    Stage.COMPUTE_INFER: "Inside the runtime, of the whole batch",
    Stage.COMPUTE_OUTPUT: "Making the answer of the model's outputs",
}


def openmetrics(tally: Tally, *, pending: int, connections: int, degraded: bool = False) -> str:
    """Return the exposition; durations are in seconds, as OpenMetrics asks."""
    placement = tally.placement
    model = f'model="{placement.model}",version="{placement.version}"'
    totals = {f'{model},placement="{candidate}"': total for candidate, total in tally.totals.items()}
    now = f'{model},placement="{placement.candidate_id}"'
    lines = [*_requests(totals)]
    for stage in Stage:
        lines += _durations(stage, totals)
    lines += _batches(totals)
    for name, help_text, count in (
        ("regatta_inference_pending_requests", "Infer requests waiting or running.", pending),
        ("regatta_serving_connections", "Open connections.", connections),
        ("regatta_serving_degraded", "1 while another candidate than the winner serves.", int(degraded)),
    ):
        lines += [f"# TYPE {name} gauge", f"# HELP {name} {help_text}", f"{name}{{{now}}} {count}"]
    return "\n".join([*lines, "# EOF", ""])


def _requests(totals: Mapping[str, Totals]) -> Iterator[str]:
    name = "regatta_inference_requests"
    yield f"# TYPE {name} counter"
    yield f"# HELP {name} Infer requests by how they ended."
    for labels, total in totals.items():
        for outcome in Outcome:
            yield f'{name}_total{{{labels},outcome="{outcome}"}} {total.outcomes[outcome]}'


def _durations(stage: Stage, totals: Mapping[str, Totals]) -> Iterator[str]:
    name = f"regatta_inference_{stage}_duration_seconds"
    yield f"# TYPE {name} summary"
    yield f"# UNIT {name} seconds"
    yield f"# HELP {name} {_STAGES[stage]}; of answered requests, quantiles within 1 %."
    for labels, total in totals.items():
        for q in _QUANTILES:
            value = sketch.quantile(total.stages[stage], q)
            yield f'{name}{{{labels},quantile="{q}"}} {"NaN" if value is None else f"{value / 1e6:.9f}"}'
        yield f"{name}_count{{{labels}}} {total.outcomes[Outcome.SUCCESS]}"
        yield f"{name}_sum{{{labels}}} {total.sums_ns[stage] / 1e9:.9f}"


def _batches(totals: Mapping[str, Totals]) -> Iterator[str]:
    name = "regatta_inference_batch_size"
    yield f"# TYPE {name} histogram"
    yield f"# HELP {name} Rows of each inference."
    for labels, total in totals.items():
        for bound in _BATCHES:
            count = sum(times for rows, times in total.batches.items() if rows <= bound)
            yield f'{name}_bucket{{{labels},le="{bound}.0"}} {count}'
        count = sum(total.batches.values())
        yield f'{name}_bucket{{{labels},le="+Inf"}} {count}'
        yield f"{name}_count{{{labels}}} {count}"
        yield f"{name}_sum{{{labels}}} {_rows(total)}"


def _rows(total: Totals) -> int:
    return sum(rows * times for rows, times in total.batches.items())


def statistics(tally: Tally) -> dict[str, Any]:
    """Return the model's statistics as Triton's extension has them, and `sketches` of each placement's stages.

    A sketch is bucket -> count of microseconds (protocol/sketch.py), to be merged with others' by adding.
    """
    every = tally.totals.values()

    def times(stage: Stage) -> dict[str, int]:
        answered = sum(total.outcomes[Outcome.SUCCESS] for total in every)
        return {"count": answered, "ns": sum(total.sums_ns[stage] for total in every)}

    batches: dict[int, int] = {}
    for total in every:
        for rows, count in total.batches.items():
            batches[rows] = batches.get(rows, 0) + count
    failed = sum(total.outcomes[outcome] for total in every for outcome in Outcome if outcome is not Outcome.SUCCESS)
    none = {"count": 0, "ns": 0}
    return {
        "name": tally.placement.model,
        "version": str(tally.placement.version),
        "inference_count": sum(_rows(total) for total in every),
        "execution_count": sum(batches.values()),
        "inference_stats": {
            "success": times(Stage.REQUEST),
            "fail": {"count": failed, "ns": 0},
            **{stage.value: times(stage) for stage in Stage if stage is not Stage.REQUEST},
            "cache_hit": none,
            "cache_miss": none,
        },
        "batch_stats": [{"batch_size": rows, "execution_count": count} for rows, count in sorted(batches.items())],
        "sketches": {
            candidate: {stage.value: total.stages[stage] for stage in Stage}
            for candidate, total in tally.totals.items()
        },
    }
