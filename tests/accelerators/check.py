"""Races real models on an accelerator that is played by the processor: `./run check-gpu` and `./run check-npu`.

    python tests/accelerators/check.py gpu|npu [--only NAME] [--budget SECONDS]

Functional only: the figures are the processor's. Each model runs through a whole race, in workers, against golden
samples of the reference kernels. Exit status 1 when an accelerator's candidate of any model did not run soundly, or
when the software GPU was not refused without the switch that allows it.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1])]  # when called as a program

from regatta_protocol.errors import RegattaError  # noqa: E402
from regatta_protocol.measurement import CandidateResult, Outcome, RaceReport  # noqa: E402
from regatta_runtimes.race.run import RaceSpec, RaceVariant, run_race  # noqa: E402
from regatta_runtimes.worker.golden import write_golden  # noqa: E402
from shared_data import find_shared  # noqa: E402
from tiny_models import dense_model  # noqa: E402

_HERE = Path(__file__).parent
_SOUND = (Outcome.MEASURED, Outcome.DROPPED)
# LiteRT 2.3 on the GPU is 6 dB from the reference kernels on pictures for this model, and under 0 dB on noise: the race
# is right to refuse it.
_KNOWN_WRONG = ("pretrainedResnet_quant",)
_MEMORY_BYTES = 4 << 30  # of one worker: compilers of shaders and graphs need more than an inference
_ROW = "{:<38} {:<34} {:<14} {:>10} {:>10} {:>8}"


def _models(folder: Path, only: str) -> list[Path]:
    """Return the models: a tiny one built here, and the real ones beside the checkout that need no Edge TPU."""
    tiny = folder / "dense.tflite"
    weights = np.random.default_rng(1).normal(size=(32, 64)).astype(np.float32)
    tiny.write_bytes(dense_model(weights, np.zeros(32, dtype=np.float32)))
    real = [path for path in find_shared("*/*.tflite") if "edgetpu" not in path.name]
    if not real:
        print("no real models: ../shared/data is absent, so only a tiny one is raced\n")
    return [path for path in (tiny, *real) if only in path.name]


def _race(model: Path, folder: Path, table: Path | None, budget_s: float) -> RaceReport:
    golden = folder / f"{model.stem}.npz"
    if not golden.exists():
        write_golden({"model": model}, golden, count=4)
    spec = RaceSpec(
        model=model.stem.lower(),
        version=1,
        variants=(RaceVariant(name="model", path=str(model)),),
        golden=str(golden),
        threads=(1,),
        budget_s=budget_s,
        memory_bytes=_MEMORY_BYTES,
        runtimes=("litert", "compiled"),
        delegate_files=() if table is None else (str(table),),
    )
    return run_race(spec)


def _is_sound(result: CandidateResult) -> bool:
    """Return whether it ran and answered rightly, however slowly; one that was dropped untried did not."""
    return result.outcome in _SOUND and result.latency is not None


def _is_known(model: Path, result: CandidateResult) -> bool:
    """Return whether it is refused for what the vendor is known to compute wrongly."""
    return result.delegate == "gpu" and result.outcome is Outcome.WRONG_OUTPUT and model.stem in _KNOWN_WRONG


def _tell(model: Path, result: CandidateResult) -> None:
    """Print a candidate's row, and under it the reason where it did not run."""
    first = "-" if result.first_us is None else f"{result.first_us / 1000:.0f} ms"
    p50 = "-" if result.latency is None else f"{result.latency.p50_us / 1000:.3f} ms"
    ratio = "-" if result.golden_snr_db is None else f"{result.golden_snr_db:.0f} dB"
    name = result.id.replace("/model/", "/")
    print(_ROW.format(model.stem[:38], name, result.outcome, first, p50, ratio), flush=True)
    if not _is_sound(result):
        print(f"    {result.reason}")


def _is_refused(model: Path, folder: Path) -> bool:
    """Return whether the software GPU is refused by name when nothing allows it."""
    table = folder / "not-allowed.toml"
    table.write_text('[gpu]\nwhat = "any GPU"\nruntimes = ["compiled"]\n')
    report = _race(model, folder, table, 30.0)
    result = next(one for one in report.candidates if one.delegate == "gpu")
    print(f"\nwithout allow_software: {result.outcome}: {result.reason}")
    return result.outcome is Outcome.CPU_FALLBACK and "software adapter" in (result.reason or "")


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["gpu", "npu"])
    parser.add_argument("--only", default="", metavar="NAME", help="only models whose file name has this in it")
    parser.add_argument("--budget", type=float, default=300.0, metavar="SECONDS", help="limit of one race [300]")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="regatta-check-") as name:
        folder = Path(name)
        models = _models(folder, options.only)
        print(_ROW.format("MODEL", "CANDIDATE", "OUTCOME", "FIRST", "P50", "SNR"))
        for model in models:
            report = _race(model, folder, _HERE / f"{options.kind}.toml", options.budget)
            for result in report.candidates:
                _tell(model, result)
                if result.plugin is not None and not _is_sound(result) and not _is_known(model, result):
                    failures.append(f"{model.stem}: {result.id}: {result.outcome}")
            if not any(result.plugin is not None for result in report.candidates):
                failures.append(f"{model.stem}: no candidate of the accelerator")
        if options.kind == "gpu" and models and not _is_refused(models[0], folder):
            failures.append("the software GPU was not refused by name without allow_software")
    print(f"\n{len(models)} models, {len(failures)} failures" + "".join(f"\n  {one}" for one in failures))
    return 1 if failures or not models else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RegattaError as err:
        sys.exit(f"check: {err}")
