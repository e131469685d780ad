"""Where the time of a device's requests goes, by stage, as the page draws it. Pure; the figures are of schemas.py."""

from __future__ import annotations

from dataclasses import dataclass

from regatta_fleet.schemas import DeviceSummary, StageLatency

__all__ = ["STAGES", "StageBars", "stage_bars"]

STAGES = {  # in a request's order
    "queue": "Queue",
    "compute_input": "Pre-processing",
    "compute_infer": "Inference",
    "compute_output": "Post-processing",
}


@dataclass(frozen=True)
class StageBars:
    """One model's stages: figures by stage, and each one's left end and width in percent of the stages' medians."""

    model: str
    figures: dict[str, StageLatency]
    bars: dict[str, tuple[float, float]]


def stage_bars(device: DeviceSummary) -> tuple[StageBars, ...]:
    """Return the stages of each model whose stages were told."""
    return tuple(
        StageBars(f"{model.name}:{model.version}", model.served.stages, _laid_end_to_end(model.served.stages))
        for model in device.models
        if model.served is not None and model.served.stages
    )


def _laid_end_to_end(figures: dict[str, StageLatency]) -> dict[str, tuple[float, float]]:
    medians = {name: figures[name].p50_us or 0.0 for name in STAGES if name in figures}
    whole = sum(medians.values()) or 1.0
    bars, left = {}, 0.0
    for name, p50_us in medians.items():
        width = 100 * p50_us / whole
        bars[name] = (round(left, 2), round(width, 2))
        left += width
    return bars
