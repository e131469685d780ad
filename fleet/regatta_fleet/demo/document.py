"""The document of `regatta demo --json`, made of what the fleet's API answers. Pure.

    page        address of the status page
    variants    [{name, size_bytes, accuracy, p50_us}]           digits:1, as measured where it was optimized
    devices     [{id, model, placement, basis, reason, candidates, inferences, accuracy, p50_us, p99_us, stages,
                power, mqtt_bytes_received}]
    rollouts    [{model, state, reason, waves}]                  digits:1, then the damaged digits:2
    duration_s  of the whole demo

A device's `candidates` are of its race of digits:1: {id, p50_us, p99_us, outcome, reason}; `basis` is "full", or
"confirmed" when the device confirmed another's race by a short run, and `reason` is the race's own words. `power` is
{power_mw, energy_per_inference_mj, method, reason}: null figures beside a reason when it is unknown.
"""

from __future__ import annotations

from typing import Any

from regatta_fleet import verdicts
from regatta_fleet.schemas import DeviceDetail, DeviceModel, RolloutDetail
from regatta_protocol.ids import ModelRef
from regatta_protocol.manifest import Manifest
from regatta_protocol.measurement import RaceReport
from regatta_protocol.values import Power, unknown_power

__all__ = ["device_document", "race_of", "rollout_document", "served_model", "variants_document"]


def served_model(detail: DeviceDetail) -> DeviceModel | None:
    """Return the version that the device serves, if any."""
    return next((model for model in detail.models if model.serving), None)


def race_of(detail: DeviceDetail, ref: ModelRef) -> RaceReport | None:
    """Return the device's newest race of a version, if it ran one."""
    return next((race for race in detail.races if (race.model, race.version) == ref), None)


def variants_document(manifest: Manifest) -> list[dict[str, Any]]:
    """Return each variant's size, accuracy and p50."""
    return [
        {
            "name": variant.name,
            "size_bytes": variant.file.size_bytes,
            "accuracy": variant.accuracy.value if variant.accuracy else None,
            "p50_us": variant.latency.p50_us if variant.latency else None,
        }
        for variant in manifest.variants
    ]


def device_document(detail: DeviceDetail, ref: ModelRef) -> dict[str, Any]:
    """Return what one device measured and served of a version."""
    race = race_of(detail, ref)
    model = next((one for one in detail.models if (one.name, one.version) == ref), None)
    served = model.served if model else None
    accuracy = (served.feedback if served else None) or (model.accuracy if model else None)
    now = served_model(detail)
    return {
        "id": detail.id,
        "model": f"{now.name}:{now.version}" if now else None,
        "placement": model.placement if model else None,
        "basis": race.basis if race else None,
        "reason": race.reason if race else None,
        "candidates": _candidates(race) if race else [],
        "inferences": served.requests if served else 0,
        "accuracy": accuracy.value if accuracy else None,
        "p50_us": served.p50_us if served else None,
        "p99_us": served.p99_us if served else None,
        "stages": {name: stage.model_dump() for name, stage in served.stages.items()} if served else {},
        "power": _power(model.power if model else None),
        "mqtt_bytes_received": detail.bytes_received,
    }


def rollout_document(rollout: RolloutDetail) -> dict[str, Any]:
    """Return how a rollout went, wave by wave."""
    return {
        "model": f"{rollout.model}:{rollout.version}",
        "state": str(rollout.state),
        "reason": rollout.reason,
        "waves": [
            {
                "number": wave.number,
                "state": str(wave.state),
                "devices": list(wave.devices),
                "reason": wave.reason,
            }
            for wave in rollout.waves
        ],
    }


def _candidates(race: RaceReport) -> list[dict[str, Any]]:
    return [
        {
            "id": result.id,
            "p50_us": result.latency.p50_us if result.latency else None,
            "p99_us": result.latency.p99_us if result.latency else None,
            "outcome": str(result.outcome),
            "reason": verdicts.candidate_verdict(result, race),
        }
        for result in race.candidates
    ]


def _power(power: Power | None) -> dict[str, Any]:
    known = power or unknown_power("the device has not reported it")
    return {
        "power_mw": known.power_mw,
        "energy_per_inference_mj": known.energy_per_inference_mj,
        "method": known.method,
        "reason": known.reason,
    }
