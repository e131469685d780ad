"""A precision for each layer: as few bytes as the accuracy budget allows, of static int8, int4 weights and float.

    all int8 within the budget?  yes: layers become int4 in turn, the least noise per saved byte first, where it holds
                                 no:  layers become float32 in turn, the noisiest first, until it holds

The noise of a layer is that of the output when this layer alone is quantized. Greedy, so not always the least bytes;
the same model and samples always give the same plan. Only in the optimizer's child process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from regatta_fleet.optimize.answers import real_answers
from regatta_fleet.optimize.compare import compare, refusal
from regatta_fleet.optimize.cost import count_macs
from regatta_fleet.optimize.model_file import model_bytes
from regatta_fleet.optimize.quantize.engine import Quantized, Source
from regatta_fleet.optimize.quantize.layers import Layer, layers
from regatta_fleet.optimize.quantize.recipes import Recipe, mixed_recipe, only_layer_recipe
from regatta_fleet.optimize.quantize.schemes import LayerPrecision
from regatta_fleet.optimize.samples import Samples
from regatta_protocol.errors import Rejected
from regatta_runtimes.worker.score import snr_db

__all__ = ["LayerNoise", "Mix", "order_for_float", "order_for_int4", "search_precision"]

Floats = npt.NDArray[np.float32]

_INT4_KINDS = {"CONV_2D", "FULLY_CONNECTED"}  # what ai-edge-quantizer 0.10 can give int4 weights
_SENSITIVITY_SAMPLES = 64
_MACS = 4_000_000_000  # of one judgment, some seconds on a board: MobileNetV2 (300 M) is judged by 32 samples
_LEAST_SAMPLES = 32


@dataclass(frozen=True)
class LayerNoise:
    """Output SNR in dB when this layer alone is quantized; None where it cannot be."""

    layer: Layer
    int8_db: float | None
    int4_db: float | None


@dataclass(frozen=True)
class Mix:
    """The file, the precision of each layer with its noise, and how many plans were tried."""

    quantized: Quantized
    noises: tuple[LayerNoise, ...]
    tried: int


def search_precision(source: Source, samples: Samples, max_drop: float) -> Mix:
    """Return the mix with the fewest bytes that the search finds within the budget.

    Args:
        source: a calibrated model.
        samples: they judge, as `compare.refusal` does with `max_drop`; not those of the evaluation.

    Raises:
        Rejected: when no mix keeps the budget, or the model has no layers.
    """
    with tempfile.TemporaryDirectory(prefix="regatta-search-") as folder:
        bench = _Bench(source, samples, max_drop, Path(folder))
        found = layers(source.model)
        if not found:
            raise Rejected("the model has no layers with constant weights: there is no precision to choose")
        noises = tuple(
            LayerNoise(layer, bench.noise_db(layer, "int8"), bench.noise_db(layer, "int4")) for layer in found
        )
        plan: dict[Layer, LayerPrecision] = dict.fromkeys(found, "int8")
        best, reason = bench.judge(plan)
        if reason is None:
            for layer in order_for_int4(noises):
                wider: dict[Layer, LayerPrecision] = {**plan, layer: "int4"}
                made, reason = bench.judge(wider)
                if reason is None and made is not None and best is not None and len(made.content) < len(best.content):
                    plan, best = wider, made
        else:
            for layer in order_for_float(noises):
                plan = {**plan, layer: "float32"}
                best, reason = bench.judge(plan)
                if reason is None:
                    break
        if best is None or (reason is not None and "float32" in plan.values()):
            raise Rejected(f"no mix of int8 and float layers keeps the budget: the last one {reason}")
        return Mix(best, noises, bench.tried)


def order_for_int4(noises: tuple[LayerNoise, ...]) -> list[Layer]:
    """Return the layers that can be int4, the least noise power per weight first."""
    able = [(noise.layer, noise.int4_db) for noise in noises if noise.int4_db is not None]
    return [layer for layer, found in sorted(able, key=lambda pair: 10 ** (-pair[1] / 10) / pair[0].weights)]


def order_for_float(noises: tuple[LayerNoise, ...]) -> list[Layer]:
    """Return all layers, the noisiest in int8 first; those that cannot be int8 by themselves last."""
    return [
        noise.layer for noise in sorted(noises, key=lambda noise: np.inf if noise.int8_db is None else noise.int8_db)
    ]


class _Bench:
    """Quantizes by a plan and runs what comes out, beside the float model's answers."""

    def __init__(self, source: Source, samples: Samples, max_drop: float, folder: Path) -> None:
        self._source = source
        count = max(_LEAST_SAMPLES, _MACS // max(count_macs(source.model), 1))
        self._samples = samples.chosen(np.arange(len(samples)) < count)
        self._max_drop = max_drop
        self._path = folder / "model.tflite"
        self._reference = self._answers(model_bytes(source.model), len(self._samples))
        self.tried = 0

    def judge(self, plan: Mapping[Layer, LayerPrecision]) -> tuple[Quantized | None, str | None]:
        """Return the model by the plan, and why it will not do, or None when it does."""
        self.tried += 1
        try:
            made = self._source.quantize(mixed_recipe(plan))
            answers = self._answers(made.content, len(self._samples))
        except Rejected as err:
            return None, f"cannot be made: {err}"
        return made, refusal(compare(answers, self._reference, self._samples.y), self._max_drop)

    def noise_db(self, layer: Layer, precision: LayerPrecision) -> float | None:
        """Return the output's SNR when only this layer is quantized, or None when it cannot be."""
        if precision == "int4" and layer.kind not in _INT4_KINDS:
            return None
        recipe: Recipe = only_layer_recipe(layer, precision)
        try:
            answers = self._answers(self._source.quantize(recipe).content, _SENSITIVITY_SAMPLES)
        except Rejected:
            return None
        return round(snr_db([answers], [self._reference[: len(answers)]]), 2)

    def _answers(self, content: bytes, count: int) -> Floats:
        self._path.write_bytes(content)
        return real_answers(self._path, self._samples.x[:count])
