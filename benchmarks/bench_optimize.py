"""The optimizer against its goals and its peers: `./run bench-optimize [SECTION …] [--rounds N]`.

Keyword spotting: MLPerf Tiny's float model, kws01_dev.npz halved by turns: one half tunes, the other is counted, sample
by sample against the float model; one sample is 0.4 points. Peers in the same run: ai-edge-quantizer's own static int8
(moving-average ranges), and MLPerf's int8 file (trained for itself, so other weights). VWW and ResNet8 have no labelled
samples here: the output SNR is on crops of one photograph, half of them for the ranges. p50 is of LiteRT with XNNPACK
on one thread, the least of several rounds, in which the files take turns.

A section is a function that returns its rows and its goals; add one to SECTIONS.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from ai_edge_quantizer import quantizer, recipe
from PIL import Image

from regatta_fleet.optimize.answers import real_answers
from regatta_fleet.optimize.compare import Comparison, compare
from regatta_fleet.optimize.model_builder import ModelBuilder
from regatta_fleet.optimize.model_file import ModelTree, model_bytes, read_model, text_of
from regatta_fleet.optimize.quantize.engine import Source
from regatta_fleet.optimize.quantize.layers import stem_layers
from regatta_fleet.optimize.quantize.schemes import SCHEMES
from regatta_fleet.optimize.quantize.search import search_precision
from regatta_fleet.optimize.samples import Samples, read_samples, split_samples
from regatta_fleet.optimize.train.available import has_torch
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.worker.measure import measure_file

ROOT = Path(__file__).resolve().parent.parent
BUDGET = 0.01  # of accuracy, for the search over precision
CROPS = 200


@dataclass(frozen=True)
class Row:
    """A file with its figures; `origin` is the float model's size and p50."""

    model: str
    variant: str
    size_bytes: int
    comparison: Comparison
    p50_us: float | None
    float_bytes: int
    float_p50_us: float | None

    @property
    def size_ratio(self) -> float:
        return self.size_bytes / self.float_bytes

    @property
    def p50_ratio(self) -> float | None:
        return None if self.p50_us is None or not self.float_p50_us else self.p50_us / self.float_p50_us


@dataclass(frozen=True)
class Goal:
    """What was to be reached: `measured` at most `bound`, or at least."""

    text: str
    measured: float | None
    bound: float
    at_least: bool = False
    unit: str = ""

    @property
    def reached(self) -> bool:
        if self.measured is None:
            return False
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound + 1e-9


Section = Callable[[Path, Path, int], "tuple[list[Row], list[Goal]]"]


def quantization(data: Path, scratch: Path, rounds: int) -> tuple[list[Row], list[Goal]]:
    """Return the rows and goals of quantization without training."""
    rows, goals = _keyword_spotting(data / "mlperf_tiny", scratch, rounds)
    photo = data / "coral/cat.bmp"
    for name, file, side, brightest, size_goal, snr_goal in (
        ("VWW", "vww_96_float.tflite", 96, 1.0, 0.36, 29.0),
        ("ResNet8", "pretrainedResnet.tflite", 32, 255.0, 0.30, 19.0),
    ):
        tuning, evaluation = split_samples(_crops(photo, side, brightest))
        found = _rows(name, data / "mlperf_tiny" / file, tuning, evaluation, {}, scratch, rounds)
        rows += found
        row = _row(found, name, "int8")
        goals += [
            Goal(f"{name}: int8 at most {size_goal} of the size", row.size_ratio, size_goal, unit="x"),
            Goal(f"{name}: int8 output SNR at least {snr_goal:g} dB", row.comparison.snr_db, snr_goal, True, " dB"),
        ]
    return rows, goals


def _keyword_spotting(data: Path, scratch: Path, rounds: int) -> tuple[list[Row], list[Goal]]:
    tuning, evaluation = split_samples(read_samples(data / "kws01_dev.npz"))
    peers = {"MLPerf's int8": data / "kws_ref_model.tflite"}
    rows = _rows("KWS", data / "kws_float32.tflite", tuning, evaluation, peers, scratch, rounds)
    int8, int4, stem = (_row(rows, "KWS", variant) for variant in ("int8", "int4-weights", "int8-float-stem"))
    default, reference = _row(rows, "KWS", "quantizer's default"), _row(rows, "KWS", "MLPerf's int8")
    count = len(evaluation)

    def lead(row: Row) -> float:
        return 100 * ((int8.comparison.correct or 0) - (row.comparison.correct or 0)) / count

    return rows, [
        Goal("KWS: int8 loses at most 0.5 points, paired", _points(int8), 0.5, unit=" points"),
        Goal("KWS: int8 at most 0.52 of the size", int8.size_ratio, 0.52, unit="x"),
        Goal("KWS: int8 at most 0.75 of the p50", int8.p50_ratio, 0.75, unit="x"),
        Goal("KWS: int8-float-stem loses at most 0.5 points, paired", _points(stem), 0.5, unit=" points"),
        Goal("KWS: int8-float-stem at most 0.52 of the size", stem.size_ratio, 0.52, unit="x"),
        Goal("KWS: int8-float-stem at most 0.75 of the p50", stem.p50_ratio, 0.75, unit="x"),
        Goal("KWS: int8 at least as right as the quantizer's default", lead(default), 0.0, True, " points"),
        Goal("KWS: int8 at least as right as MLPerf's int8", lead(reference), 0.0, True, " points"),
        Goal("KWS: 4-bit weights lose at most 1 point, paired", _points(int4), 1.0, unit=" points"),
    ]


def _rows(
    name: str,
    model: Path,
    tuning: Samples,
    evaluation: Samples,
    peers: Mapping[str, Path],
    scratch: Path,
    rounds: int,
) -> list[Row]:
    """Return a row for the float model, each scheme, the mix, the quantizer's default, and the peers."""
    return _measured(name, {"float32": model, **_made(name, model, tuning, scratch), **peers}, evaluation, rounds)


def _measured(name: str, files: Mapping[str, Path], evaluation: Samples, rounds: int) -> list[Row]:
    """Return a row for each file; the first is float32, which the others are held against."""
    model = files["float32"]
    reference = real_answers(model, evaluation.x)
    times = _least_p50_us(files, rounds)
    return [
        Row(
            name,
            variant,
            path.stat().st_size,
            compare(real_answers(path, evaluation.x), reference, evaluation.y),
            times.get(variant),
            model.stat().st_size,
            times.get("float32"),
        )
        for variant, path in files.items()
    ]


def training(data: Path, scratch: Path, rounds: int) -> tuple[list[Row], list[Goal]]:
    """Return the rows and goals of pruning, distillation and quantization-aware training; none without PyTorch."""
    if not has_torch():
        print("needs PyTorch: ./run check-train makes an environment, .venv-train, to run this file in")
        return [], []
    from training_rows import kws_files, trained_int4

    tuning, evaluation = split_samples(read_samples(data / "mlperf_tiny/kws01_dev.npz"))
    model = data / "mlperf_tiny/kws_float32.tflite"
    peers = {"MLPerf's int8": data / "mlperf_tiny/kws_ref_model.tflite"}
    rows = _measured("KWS", {"float32": model, **kws_files(model, tuning, scratch), **peers}, evaluation, rounds)
    pruned, both, peer = (_row(rows, "KWS", name) for name in ("distilled", "distilled, int8", "MLPerf's int8"))
    int4, int8 = _row(rows, "KWS", "int4-trained"), _row(rows, "KWS", "int8-trained")
    right = 100 * ((both.comparison.correct or 0) - (peer.comparison.correct or 0)) / len(evaluation)
    goals = [
        Goal("KWS: 25 % of MACs pruned, no labels, loses at most 1.5 points", _points(pruned), 1.5, unit=" points"),
        Goal("KWS: 25 % of MACs pruned, at most 0.8 of the p50", pruned.p50_ratio, 0.8, unit="x"),
        Goal("KWS: pruned and int8 at least as right as MLPerf's int8", right, 0.0, True, " points"),
        Goal("KWS: pruned and int8 at most MLPerf's size", both.size_bytes / peer.size_bytes, 1.0, unit="x"),
        Goal("KWS: pruned and int8 at most MLPerf's p50", _ratio(both.p50_us, peer.p50_us), 1.0, unit="x"),
        Goal("KWS: 4-bit weights, trained, lose at most 1 point", _points(int4), 1.0, unit=" points"),
        Goal("KWS: int8, trained, loses at most 0.5 points", _points(int8), 0.5, unit=" points"),
    ]
    photo = data / "coral/cat.bmp"
    for name, file, side, brightest in (
        ("VWW", "vww_96_float.tflite", 96, 1.0),
        ("ResNet8", "pretrainedResnet.tflite", 32, 255.0),
    ):
        tuning, evaluation = split_samples(_crops(photo, side, brightest))
        path = data / "mlperf_tiny" / file
        files = {"float32": path, **trained_int4(name, path, tuning, scratch)}
        found = _measured(name, files, evaluation, rounds)
        rows += found
        snr_db = _row(found, name, "int4-trained").comparison.snr_db
        goals.append(
            Goal(f"{name}: 4-bit weights, trained, at least 10 dB (what the optimizer asks)", snr_db, 10, True)
        )
    return rows, goals


def folding(data: Path, scratch: Path, rounds: int) -> tuple[list[Row], list[Goal]]:
    """Return the goal that folding makes no convolution slower; prints each. They stand alone, with a stride of 2."""
    ratios = []
    for size, kernel, filters, channels in itertools.product((20, 33, 96), (3, 5, 7), (8, 64), (1, 2)):
        random = np.random.RandomState(0)
        builder, out = ModelBuilder("one convolution"), -(-size // 2)
        width = size + size % 2
        weights = random.standard_normal((filters, kernel, kernel, channels)).astype(np.float32)
        place = builder.input("x", (1, size, width, channels))
        bias = np.zeros(filters, np.float32)
        place = builder.conv("y", place, weights, bias, (1, out, width // 2, filters), stride=2)
        source = Source(builder.finish([place]))
        source.calibrate(random.standard_normal((8, size, width, channels)).astype(np.float32))
        files = {}
        for scheme in ("int8", "int8-unfolded"):
            files[scheme] = scratch / f"{scheme}.tflite"
            files[scheme].write_bytes(source.quantize_by(scheme).content)
        times = _least_p50_us(files, rounds)
        ratios.append(times["int8"] / times["int8-unfolded"])
        print(
            f"{size} x {width} x {channels}, {filters} filters {kernel} x {kernel}: {times['int8-unfolded']:.1f} us, "
            f"folded by {source.folded[0].way} {times['int8']:.1f} us, {ratios[-1]:.2f}"
        )
    return [], [Goal("a folded convolution takes at most 1.0 of the time, the worst", max(ratios), 1.0, unit="x")]


def _points(row: Row) -> float:
    return 100 * (row.comparison.drop or 0.0)


def _ratio(p50_us: float | None, other_us: float | None) -> float | None:
    return None if p50_us is None or not other_us else p50_us / other_us


def _made(name: str, model: Path, tuning: Samples, scratch: Path) -> dict[str, Path]:
    source = Source(read_model(model))
    source.calibrate(tuning.x)
    differs = {"int8-unfolded": source.folded, "int8-float-stem": stem_layers(source.model)}
    wanted = [scheme for scheme in SCHEMES if differs.get(scheme, (scheme,))]
    contents: dict[str, bytes] = {scheme: source.quantize_by(scheme).content for scheme in wanted}
    contents["mixed"] = search_precision(source, tuning, BUDGET).quantized.content
    contents["quantizer's default"] = _by_default(read_model(model), tuning)
    paths = {}
    for place, (variant, content) in enumerate(contents.items()):
        paths[variant] = scratch / f"{name}-{place}.tflite"
        paths[variant].write_bytes(content)
    return paths


def _by_default(model: ModelTree, tuning: Samples) -> bytes:
    """Return what ai-edge-quantizer makes by itself; normalized, for it changes nothing in old files otherwise."""
    content, signature = model_bytes(model), model.signatureDefs[0]
    shape = model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].shape
    default = quantizer.Quantizer(content, recipe.static_wi8_ai8())
    feed = text_of(signature.inputs[0].name)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        ranges = default.calibrate(
            {text_of(signature.signatureKey): [{feed: sample.reshape(shape)} for sample in tuning.x]}
        )
        return bytes(default.quantize(ranges, enable_progress_bar=False, enable_progress_report=False).quantized_model)


def _least_p50_us(files: Mapping[str, Path], rounds: int) -> dict[str, float]:
    least: dict[str, float] = {}
    for _ in range(rounds):
        for place, (variant, path) in enumerate(files.items()):
            latency = measure_file(Candidate("litert", f"v{place}", "xnnpack", 1), path).latency
            if latency is not None:
                least[variant] = min(least.get(variant, float("inf")), latency.p50_us)
    return least


def _crops(photo: Path, side: int, brightest: float) -> Samples:
    """Return seeded square crops of the photograph, half of them mirrored, in [0, brightest]."""
    random = np.random.RandomState(0)
    picture = Image.open(photo).convert("RGB")
    crops: list[npt.NDArray[np.float32]] = []
    for place in range(CROPS):
        size = int(random.randint(side, min(picture.size) + 1))
        left, top = (int(random.randint(0, whole - size + 1)) for whole in picture.size)
        crop = picture.crop((left, top, left + size, top + size)).resize((side, side))
        pixels = np.asarray(crop, np.float32) * np.float32(brightest / 255)
        crops.append(pixels[:, ::-1] if place // 2 % 2 else pixels)
    return Samples(np.stack(crops))


def _row(rows: Sequence[Row], model: str, variant: str) -> Row:
    return next(row for row in rows if (row.model, row.variant) == (model, variant))


def _print(rows: Sequence[Row], goals: Sequence[Goal]) -> None:
    print(
        f"{'MODEL':8} {'VARIANT':20} {'BYTES':>9} {'OF FLOAT':>8} {'RIGHT':>12} {'LOST/GAINED':>11} {'P':>6} "
        f"{'SNR dB':>7} {'P50 us':>8} {'OF FLOAT':>8}"
    )
    for row in rows:
        found = row.comparison
        right = "-" if found.correct is None else f"{found.correct}/{found.samples} {found.correct / found.samples:.3f}"
        changed = "-" if found.lost is None else f"{found.lost}/{found.gained}"
        p_value = "-" if found.p_value is None else f"{found.p_value:.2f}"
        p50 = "-" if row.p50_us is None else f"{row.p50_us:.1f}"
        ratio = "-" if row.p50_ratio is None else f"{row.p50_ratio:.2f}"
        print(
            f"{row.model:8} {row.variant:20} {row.size_bytes:>9,} {row.size_ratio:>8.2f} {right:>12} {changed:>11} "
            f"{p_value:>6} {found.snr_db:>7.1f} {p50:>8} {ratio:>8}"
        )
    print()
    for goal in goals:
        measured = "unknown" if goal.measured is None else f"{goal.measured:.2f}{goal.unit}"
        print(f"{'reached' if goal.reached else 'MISSED ':8} {goal.text}: {measured}")


SECTIONS: dict[str, Section] = {"quantization": quantization, "training": training, "folding": folding}


def main() -> None:
    """Print each section's table and goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"out of {', '.join(SECTIONS)} [default: all]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="the folder with mlperf_tiny/ and coral/")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"there is no section {unknown[0]}: give one of {', '.join(SECTIONS)}")
    places = [arguments.data] if arguments.data else [ROOT.parent / "shared/data", ROOT.parent.parent / "shared/data"]
    data = next((place for place in places if (place / "mlperf_tiny/kws_float32.tflite").is_file()), None)
    if data is None:
        parser.error("the models and samples are not beside this checkout: --data names their folder")
    print(f"{platform.machine()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    for name in arguments.sections or SECTIONS:
        with tempfile.TemporaryDirectory(prefix="regatta-bench-") as scratch:
            rows, goals = SECTIONS[name](data, Path(scratch), arguments.rounds)
        print(f"\n{name}\n")
        _print(rows, goals)
        print(f"\n{sum(goal.reached for goal in goals)} of {len(goals)} goals reached")


if __name__ == "__main__":
    main()
