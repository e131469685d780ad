"""The worker's figures as OpenMetrics 1.0 text, named after Triton's where it has the same. Pure."""

from __future__ import annotations

from regatta_agent.serving.window import Outcome, Tally
from regatta_protocol import sketch

__all__ = ["CONTENT_TYPE", "openmetrics"]

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_QUANTILES = (0.5, 0.9, 0.99)


def openmetrics(tally: Tally, *, pending: int, connections: int, degraded: bool = False) -> str:
    """Return the exposition; durations are in seconds, as OpenMetrics asks."""
    placement = tally.placement
    labels = f'model="{placement.model}",version="{placement.version}",placement="{placement.candidate_id}"'
    counts = tally.latency_so_far()
    lines = [
        "# TYPE regatta_inference_requests counter",
        "# HELP regatta_inference_requests Infer requests by how they ended.",
    ]
    lines += [
        f'regatta_inference_requests_total{{{labels},outcome="{outcome}"}} {tally.outcomes[outcome]}'
        for outcome in Outcome
    ]
    lines += [
        "# TYPE regatta_inference_request_duration_seconds summary",
        "# UNIT regatta_inference_request_duration_seconds seconds",
        "# HELP regatta_inference_request_duration_seconds From the whole request to its answer, within 1 %.",
    ]
    for q in _QUANTILES:
        value = sketch.quantile(counts, q)
        text = "NaN" if value is None else f"{value / 1e6:.9f}"
        lines.append(f'regatta_inference_request_duration_seconds{{{labels},quantile="{q}"}} {text}')
    lines += [
        f"regatta_inference_request_duration_seconds_count{{{labels}}} {tally.outcomes[Outcome.SUCCESS]}",
        f"regatta_inference_request_duration_seconds_sum{{{labels}}} {tally.total_ns / 1e9:.9f}",
    ]
    for stage, ns in (("queue", tally.queue_ns), ("compute", tally.compute_ns)):
        name = f"regatta_inference_{stage}_duration_seconds"
        lines += [
            f"# TYPE {name} counter",
            f"# UNIT {name} seconds",
            f"# HELP {name} Time of answered requests in this stage.",
            f"{name}_total{{{labels}}} {ns / 1e9:.9f}",
        ]
    for name, help_text, count in (
        ("regatta_inference_pending_requests", "Infer requests waiting or running.", pending),
        ("regatta_serving_connections", "Open connections.", connections),
        ("regatta_serving_degraded", "1 while another candidate than the winner serves.", int(degraded)),
    ):
        lines += [f"# TYPE {name} gauge", f"# HELP {name} {help_text}", f"{name}{{{labels}}} {count}"]
    return "\n".join([*lines, "# EOF", ""])
