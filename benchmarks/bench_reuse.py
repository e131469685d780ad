"""How long confirming an earlier race takes beside racing in full: `./run bench reuse [MODEL.tflite ...]`.

For each model (the shipped digits model; those of ../shared/data too where they are): a full race, then confirmations
of it. A confirmation that does not hold is followed by a full race, as on a device, and is
counted. Both begin with the same work: starting the runtimes and reading the board.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path
from statistics import median

from regatta_fleet.examples.digits import MODEL
from regatta_protocol.ids import DeviceId
from regatta_protocol.measurement import PriorRace, RaceReport
from regatta_runtimes.race.run import RaceSpec, RaceVariant, run_race

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def confirm(spec: RaceSpec, prior: PriorRace) -> RaceReport:
    """Return the report of a race that hears of the prior."""
    return run_race(spec, consult=lambda _key: prior)


def main() -> None:
    """Print one line a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    print(f"{'MODEL':40} {'FULL s':>7} {'CONFIRMED s':>12} {'HELD':>7}  PLACEMENT")
    for model in arguments.models or [MODEL, *sorted(SHARED.rglob("*[!u].tflite"))]:
        path = str(model.resolve())
        spec = RaceSpec(model="model", version=1, variants=(RaceVariant(name="model", path=path),))
        full = run_race(spec, consult=lambda _key: None)
        if full.placement is None:
            print(f"{model.name:40} nothing here runs it")
            continue
        prior = PriorRace(device=DeviceId("other"), at=time.time(), report=full)
        reports = [confirm(spec, prior) for _ in range(arguments.rounds)]
        held = [report.duration_s for report in reports if report.basis == "confirmed"]
        took = f"{median(held):.2f}" if held else "-"
        print(
            f"{model.name:40} {full.duration_s:7.2f} {took:>12} {len(held):>4}/{len(reports)}  {full.placement}",
            flush=True,
        )


if __name__ == "__main__":
    main()
