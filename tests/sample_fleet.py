"""A fleet with something of everything to show, for tests of the page and of the command line's tables."""

from __future__ import annotations

import time

from regatta_fleet.schemas import BatchDetail, DeviceDetail, RolloutDetail
from regatta_fleet.testing import FakeFleet
from regatta_protocol.messages import InstallState

__all__ = ["DIGEST", "device", "give_batches", "harbor", "race"]

DIGEST = "ab" * 32
_STAGES_US = {"queue": 1.4, "compute_input": 2.1, "compute_infer": 20.0, "compute_output": 1.0}


def race(name: str = "digits", version: int = 1, speed: float = 1.0) -> dict[str, object]:
    """Return a race as JSON, with every kind of ending; `speed` scales its latencies."""

    def candidate(text: str, p50_us: float | None, outcome: str = "measured", **more: object) -> dict[str, object]:
        runtime, variant, delegate, threads = text.split("/")
        latency = None
        if p50_us is not None:
            p50_us *= speed
            latency = {"samples": 400, "p50_us": p50_us, "p90_us": p50_us * 1.15, "p99_us": p50_us * 1.6}
        accuracy = {"correct": 347 if variant.startswith("int8") else 349, "total": 360} if p50_us else None
        return {
            "id": text,
            "runtime": runtime,
            "variant": variant,
            "delegate": delegate,
            "threads": int(threads[1:]),
            "outcome": outcome,
            "latency": latency,
            "accuracy": accuracy,
            "first_us": None if p50_us is None else p50_us * 40,
            "peak_rss_bytes": 31_400_000 if p50_us else None,
            **more,
        }

    return {
        "model": name,
        "version": version,
        "board": {},
        "duration_s": 3.42,
        "placement": "litert/int8-pruned/xnnpack/t2",
        "reason": "litert/int8-pruned/xnnpack/t2 has the lowest p50 of 5 correct candidates; accuracy 96.4 % is "
        "0.6 points below float32, within the allowed 2.0",
        "candidates": [
            candidate("litert/float32/none/t1", 231.0),
            candidate("litert/int8-pruned/xnnpack/t2", 21.4),
            candidate("litert/int8/xnnpack/t2", 30.9),
            candidate("litert/int8/xnnpack/t1", 38.2),
            candidate("litert/float32/xnnpack/t2", 61.7),
            candidate("tflite/int8/none/t1", 120.3, "dropped", reason="3 of 12 rounds, 5.6× the leader"),
            candidate(
                "tflite/float32/none/t1",
                None,
                "unavailable",
                reason="tflite-runtime has no wheel for Python 3.12 on this board",
            ),
            candidate("litert/int8/edgetpu/t1", None, "crashed", reason="signal 11 in libedgetpu.so.1 while preparing"),
            candidate(
                "litert/float16/xnnpack/t2", 55.0, "wrong_output", reason="9 dB SNR against the reference, 30 asked"
            ),
        ],
    }


def device(
    name: str,
    *,
    model: str = "digits",
    version: int = 1,
    up: bool = True,
    state: str = "committed",
    serving: bool = True,
    reason: str | None = None,
    power_mw: float | None = None,
    speed: float = 1.0,
    **more: object,
) -> DeviceDetail:
    """Return a device that serves one model, with its race."""
    now = time.time()
    power: dict[str, object] = (
        {"method": "none", "reason": "no power sensor: no INA219/226/3221, RAPL or PMIC was found under /sys"}
        if power_mw is None
        else {"method": "measured", "coverage": "board", "power_mw": power_mw, "sensor": "ina3221 VDD_IN"}
    )
    one = {
        "device": name,
        "name": model,
        "version": version,
        "state": state,
        "serving": serving,
        "reason": reason,
        "placement": "litert/int8-pruned/xnnpack/t2",
        "accuracy": {"correct": 347, "total": 360},
        "latency": {"samples": 400, "p50_us": 21.4 * speed, "p90_us": 25 * speed, "p99_us": 34.2 * speed},
        "power": power,
        "served": {
            "requests": 12_480,
            "errors": 0,
            "p50_us": 24.9 * speed,
            "p99_us": 51.3 * speed,
            "stages": {
                name: {"requests": 12_400, "p50_us": p50_us * speed, "p99_us": 2 * p50_us * speed}
                for name, p50_us in _STAGES_US.items()
            },
        },
    }
    return DeviceDetail.model_validate(
        {
            "id": name,
            "group": "default",
            "up": up,
            "last_seen": now - (4 if up else 800),
            "enrolled_at": now - 86_400,
            "agent_version": "0.1.0",
            "bytes_received": 184_320,
            "desired_generation": 3,
            "reported_generation": 3,
            "board": {
                "model": "Raspberry Pi 5 Model B Rev 1.0",
                "machine": "aarch64",
                "cpu": "Cortex-A76",
                "cores": 4,
                "memory_bytes": 8_318_000_000,
            },
            "models": [one],
            "races": [race(model, version, speed)],
            **more,
        }
    )


def harbor() -> FakeFleet:
    """Return the sample fleet: devices up, down and failed; a model with two versions; three rollouts."""
    fleet = FakeFleet(token="test-token")
    fleet.add_device(device("quay-1", power_mw=4120.0))
    fleet.add_device(device("quay-2", speed=1.12, power_mw=3980.0))
    fleet.add_device(device("buoy-1", up=False, group="sea", speed=2.1))
    jetson = {"model": "NVIDIA Jetson Orin Nano Developer Kit", "machine": "aarch64", "cpu": "Cortex-A78AE", "cores": 6}
    failed = device(
        "crane-1",
        board=jetson,
        speed=0.7,
        power_mw=6210.0,
    )
    bad = failed.models[0].model_copy(
        update={
            "version": 2,
            "state": InstallState.ROLLED_BACK,
            "serving": False,
            "reason": "accuracy 61.1 % on trial is 35.3 points below digits:1 (allowed: 5.0); back on digits:1",
            "served": None,
            "placement": "litert/int8/xnnpack/t2",
        }
    )
    fleet.add_device(failed.model_copy(update={"models": (*failed.models, bad)}))
    fleet.add_device(device("gate-1", models=[], races=[], board={"machine": "x86_64"}))
    fleet.versions["digits"] = []
    now = time.time()

    def rollout(number: int, version: int, state: str, waves: list[dict[str, object]], reason: str | None) -> None:
        fleet.rollouts[f"r-{number}"] = RolloutDetail.model_validate(
            {
                "id": f"r-{number}",
                "model": "digits",
                "version": version,
                "state": state,
                "reason": reason,
                "waves": waves,
                "gate": {},
                "created_at": now - 4000 + number * 1000,
            }
        )

    rollout(
        1,
        1,
        "completed",
        [
            {"number": 1, "state": "promoted", "devices": ["quay-1"], "succeeded": 1, "reason": "1 of 1 succeeded"},
            {
                "number": 2,
                "state": "promoted",
                "devices": ["quay-2", "crane-1", "buoy-1"],
                "succeeded": 3,
                "reason": "3 of 3 succeeded; accuracy 96.4 %, p99 51 µs",
            },
        ],
        None,
    )
    rollout(
        2,
        2,
        "rolled_back",
        [
            {
                "number": 1,
                "state": "failed",
                "devices": ["crane-1"],
                "failed": 1,
                "reason": "accuracy fell by 35.3 points on crane-1 (96.4 % → 61.1 %), 2.0 allowed",
            },
            {"number": 2, "state": "pending", "devices": ["quay-1", "quay-2", "buoy-1"]},
        ],
        "wave 1: accuracy fell by 35.3 points, 2.0 allowed; its devices are back on digits:1",
    )
    rollout(
        3,
        3,
        "running",
        [
            {"number": 1, "state": "promoted", "devices": ["quay-1"], "succeeded": 1, "reason": "1 of 1 succeeded"},
            {"number": 2, "state": "observing", "devices": ["quay-2", "crane-1"], "succeeded": 1},
            {"number": 3, "state": "pending", "devices": ["buoy-1"]},
        ],
        None,
    )
    fleet.say("enrolled", "enrolled with a one-time token", "quay-1")
    fleet.say("model", "digits:1 was pushed (float32, int8, int8-pruned)")
    fleet.say("rollout", "r-1 of digits:1 to 4 devices began")
    fleet.say("race", "digits:1 placed on litert/int8-pruned/xnnpack/t2 at 21.4 µs", "quay-1")
    fleet.say("gate", "r-2 wave 1 failed: accuracy fell by 35.3 points, 2.0 allowed", "crane-1")
    return fleet


def give_batches(fleet: FakeFleet) -> None:
    """Let the fleet have three batches: one at work with a failure, one that is done and pulled, one cancelled."""
    now = time.time()

    def on(device: str, state: str, **more: object) -> dict[str, object]:
        return {"device": device, "state": state, "updated_at": now, **more}

    def summary(**more: object) -> dict[str, object]:
        return {
            "records": 5000, "refused": 3, "seconds": 41.0, "per_second": 121.9, "p50_us": 812.0, "p90_us": 990.0,
            "p99_us": 1400.0, "output_bytes": 1_240_000, "classes": {"seven": 2100, "one": 1500, "four": 900, "two": 2},
            "other_classes": 498, "mean_score": 0.93, **more,
        }  # fmt: skip

    def batch(number: int, source: str, devices: list[dict[str, object]]) -> None:
        fleet.batches[f"b-{number}"] = BatchDetail.model_validate(
            {
                "id": f"b-{number}", "model": "digits", "input": source, "output": f"b-{number}.jsonl",
                "created_at": now - 4000 + number * 1000, "devices": devices,
            }
        )  # fmt: skip

    batch(1, "/data/night/*.jpg", [on("buoy-1", "cancelled", records=120, reason="the fleet no longer asks for it")])
    here = {"state": "here", "size_bytes": 1_240_000, "received_bytes": 1_240_000, "digest": DIGEST}
    sending = {"state": "sending", "size_bytes": 1_240_000, "received_bytes": 420_000, "digest": DIGEST}
    metered = {"state": "refused", "reason": 'this device is on a metered link: its operator allows it by "always"'}
    done = {"records": 5000, "total": 5000, "summary": summary()}
    batch(
        2,
        "/data/photos",
        [
            on("quay-1", "done", **done, results=here),
            on("quay-2", "done", **done, results=sending),
            on("crane-1", "done", **(done | {"summary": summary(classes={}, refused=0)}), results=metered),
        ],
    )
    batch(
        3,
        "/data/day.npy",
        [
            on("quay-1", "running", records=3120, total=5000),
            on("quay-2", "queued", reason="waiting: digits:2 is being raced"),
            on("gate-1", "failed", reason="this device lets its fleet run no batch jobs: batch_folder is not set"),
        ],
    )
