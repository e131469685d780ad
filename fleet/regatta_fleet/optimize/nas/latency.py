"""The latency table: microseconds of every layer of a search space on one device, and estimates from it.

A layer's figure is the p50 of a probe that does it, less that of the probe without it (`tflite.probe_model`); an
architecture's is the sum over its layers and the cost of a call, which is the least probe's. What the runtime gains by
running layers together is left out; the search reports what the best architecture measured beside what was estimated.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pydantic import Field

from regatta_fleet.optimize.model_file import write_model
from regatta_fleet.optimize.nas.layers import Layer, Shape
from regatta_fleet.optimize.nas.tflite import probe_model
from regatta_protocol.codec import decode, encode
from regatta_protocol.durable import read_bounded, write_durably
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import digest_of_bytes
from regatta_protocol.wire import Wire
from regatta_runtimes.board.probe import probe_board
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.worker.job import Time
from regatta_runtimes.worker.nursery import Nursery
from regatta_runtimes.worker.trial import Trial, TrialFiles, TrialLimits

__all__ = [
    "LatencyTable",
    "Probe",
    "layer_latencies",
    "local_table",
    "measure_files",
    "probes_of",
    "read_table",
    "with_measured",
    "write_table",
]

Progress = Callable[[str, float], None]
Probe = tuple[str, Layer | None, Shape]  # name, what it does, on what
_MAX_TABLE_BYTES = 4 * 1024 * 1024
_RUNTIME, _DELEGATE = "litert", "xnnpack"
_ROUND = Time(budget_s=0.02, min_samples=5, max_samples=500, warmup=5)
_ROUNDS = 3  # with the first a warm-up; the least median of the others counts, since noise only adds


class LatencyTable(Wire):
    """Microseconds of layers, by `Layer.key`."""

    table: int = 1
    device: str  # where it was measured: a device's name, or "this machine"
    setting: str  # RUNTIME/DELEGATE/tN
    board: str | None = None
    call_us: float = Field(default=0.0, ge=0)  # of an inference that does next to nothing
    layers_us: dict[str, float] = Field(default_factory=dict)

    def estimate_us(self, layers: Iterable[Layer]) -> float:
        """Return what one inference takes.

        Raises:
            Rejected: when the table lacks one.
        """
        found = tuple(layers)
        lacking = [layer.key for layer in found if layer.key not in self.layers_us]
        if lacking:
            raise Rejected(
                f"the latency table of {self.device} has no figure for {lacking[0]} and {len(lacking) - 1} others: "
                "measure it for this search space and these samples"
            )
        return self.call_us + sum(self.layers_us[layer.key] for layer in found)


def probes_of(layers: Mapping[str, Layer]) -> tuple[Probe, ...]:
    """Return a probe for each layer, and one without a layer for each shape that they take.

    Their names will do for variants of a bundle.
    """
    shapes = sorted({layer.before for layer in layers.values()})
    empty: list[Probe] = [(_empty(shape), None, shape) for shape in shapes]
    return (*empty, *((f"p-{key}".lower(), layer, layer.before) for key, layer in layers.items()))


def layer_latencies(layers: Mapping[str, Layer], measured_us: Mapping[str, float]) -> dict[str, float]:
    """Return each layer's microseconds, at least 0, from those of its probe and of the one without a layer.

    Args:
        measured_us: p50 by the probe's name; layers whose probes are missing are left out.
    """
    found = {}
    for key, layer in layers.items():
        with_it, without = measured_us.get(f"p-{key}".lower()), measured_us.get(_empty(layer.before))
        if with_it is not None and without is not None:
            found[key] = round(max(with_it - without, 0.0), 4)
    return found


def with_measured(table: LatencyTable, layers: Mapping[str, Layer], measured_us: Mapping[str, float]) -> LatencyTable:
    """Return the table with these layers too, of the p50 of their probes; a call's cost is that of the first time."""
    empty = [measured_us[name] for name, layer, _ in probes_of(layers) if layer is None and name in measured_us]
    call_us = table.call_us or round(min(empty, default=0.0), 4)
    known = {**table.layers_us, **layer_latencies(layers, measured_us)}
    return table.model_copy(update={"call_us": call_us, "layers_us": dict(sorted(known.items()))})


def local_table(
    layers: Mapping[str, Layer], folder: Path, progress: Progress = lambda message, share: None
) -> LatencyTable:
    """Return this machine's table, measured where the file in `folder` lacks a layer, and kept there.

    Raises:
        Misuse: when the runtime is not installed.
        Rejected: when a probe does not run.
    """
    board = probe_board().fingerprint_text()
    with _nursery() as nursery:
        setting = f"{_RUNTIME}/{_DELEGATE}/t1"
        about = digest_of_bytes(f"{board} {nursery.runtime_version} {setting}".encode())[:16]
        path = folder / f"{about}.json"
        table = LatencyTable(device="this machine", setting=setting, board=board)
        if path.is_file():
            table = read_table(path)
        lacking = {key: layer for key, layer in layers.items() if key not in table.layers_us}
        if lacking:
            table = with_measured(table, lacking, _measure(probes_of(lacking), nursery, progress))
    if lacking:
        folder.mkdir(parents=True, exist_ok=True)
        write_table(path, table)
    return table


def measure_files(files: Mapping[str, Path], progress: Progress = lambda message, share: None) -> dict[str, float]:
    """Return the p50 of each model file on one thread of this machine, in microseconds."""
    with _nursery() as nursery:
        return {name: _time(name, path, nursery) for name, path in files.items()}


def read_table(path: Path) -> LatencyTable:
    """Return the table in the file.

    Raises:
        Rejected: when it is none.
    """
    return decode(LatencyTable, read_bounded(path, _MAX_TABLE_BYTES), _MAX_TABLE_BYTES)


def write_table(path: Path, table: LatencyTable) -> None:
    """Write the table, whole or not at all."""
    write_durably(path, encode(table, _MAX_TABLE_BYTES), mode=0o644)


def _nursery() -> Nursery:
    return Nursery(_RUNTIME)


def _measure(probes: tuple[Probe, ...], nursery: Nursery, progress: Progress) -> dict[str, float]:
    found = {}
    with tempfile.TemporaryDirectory(prefix="regatta-probes-") as scratch:
        path = Path(scratch) / "probe.tflite"
        for at, (name, layer, shape) in enumerate(probes):
            progress(f"timing layer {at + 1} of {len(probes)} for the latency table", at / len(probes))
            write_model(probe_model(layer, shape), path)
            found[name] = _time(name, path, nursery)
    return found


def _time(name: str, path: Path, nursery: Nursery) -> float:
    trial = Trial(Candidate(_RUNTIME, name, _DELEGATE, 1), TrialFiles(path), TrialLimits())
    if trial.open(nursery):
        for _ in range(_ROUNDS):
            if not trial.time(_ROUND):
                break
        trial.retire()
    if len(trial.rounds) < _ROUNDS:
        raise Rejected(f"{name} does not run on this machine: {trial.reason}")
    return min(sorted(samples)[len(samples) // 2] for samples in trial.rounds[1:])


def _empty(shape: Shape) -> str:
    return f"p-none-{'x'.join(map(str, shape))}"
