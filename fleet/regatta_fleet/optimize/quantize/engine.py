"""ai-edge-quantizer behind a front that makes files safe for it and checks what it made.

Only in the optimizer's child process: calibration runs the model. The model comes normalized (`model_file.normalize`),
for the quantizer reads operators only where TensorFlow 2.4 and later put them, and needs a signature; every channel
gets a range (`layers.with_ranges`); what comes out must hold quantized weights, and is made compact. Static int8 starts
from a graph that is written otherwise, with means for pools over all (`pools`) and strides folded (`fold`); other
schemes, and recipes layer by layer, gain nothing by that and start from the graph as it is.

Calibration keeps the minimum and maximum over the samples; the quantizer's default, a moving average of them, loses 6
to 9 dB of output SNR (./run bench-optimize prints both).
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_quantizer import calibrator, quantizer, recipe_manager
from ai_edge_quantizer.utils import qsv_utils

from regatta_fleet.optimize.compact import compact
from regatta_fleet.optimize.fold import fold
from regatta_fleet.optimize.model_file import ModelTree, model_bytes, parse_model, text_of
from regatta_fleet.optimize.quantize.layers import Layer, check_changed, stem_layers, with_ranges
from regatta_fleet.optimize.quantize.pools import with_means
from regatta_fleet.optimize.quantize.recipes import Recipe, scheme_recipe
from regatta_fleet.optimize.quantize.schemes import Scheme
from regatta_protocol.errors import Rejected

__all__ = ["Quantized", "Source"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Quantized:
    """The content of a .tflite file, and its layers with the names of the float model."""

    content: bytes
    layers: tuple[Layer, ...]
    rewritten: tuple[str, ...] = ()  # what of the graph was written otherwise first, in words


class Source:
    """A float model that is quantized in one way or several, with the ranges of its tensors once they are known.

    `folded` tells the convolutions that the scheme int8 folds first.
    """

    def __init__(self, model: ModelTree) -> None:
        self.model, self.dead_channels = with_ranges(model)
        self._content = model_bytes(self.model)
        whole, means = with_means(self.model)
        folded, self.folded = fold(whole)
        words = ("average pool over the whole written as MEAN",) if means else ()
        unfolded = model_bytes(whole), words
        self._rewritten: dict[Scheme, tuple[bytes, tuple[str, ...]]] = {  # the graph that a scheme starts from
            "int8": (model_bytes(folded), (*(one.words for one in self.folded), *words)),
            "int8-unfolded": unfolded,
            "int8-float-stem": unfolded,
        }
        self._ranges: dict[str, Any] | None = None

    def calibrate(self, samples: Floats, *, moving_average: bool = False) -> None:
        """Take the range of every tensor from the samples, real values [n, …] for input 0.

        Args:
            moving_average: do as the quantizer does by default, to compare with.

        Raises:
            Rejected: when the model has further inputs, there are no samples, or they do not fit or overflow.
        """
        graph, signature = self.model.subgraphs[0], self.model.signatureDefs[0]
        if len(graph.inputs) != 1:
            raise Rejected(f"the model has {len(graph.inputs)} inputs: samples calibrate models with one")
        if len(samples) == 0:
            raise Rejected("no samples to calibrate with: give at least one, better a hundred")
        shape = tuple(int(size) for size in graph.tensors[graph.inputs[0]].shape)
        if samples[0].size != int(np.prod(shape)):
            found = list(samples.shape[1:])
            raise Rejected(f"the samples are of shape {found}, the model's input wants {list(shape[1:])}")
        feed, key = text_of(signature.inputs[0].name), text_of(signature.signatureKey)
        manager = recipe_manager.RecipeManager()
        manager.load_quantization_recipe(scheme_recipe("int8"))
        update = qsv_utils.moving_average_update if moving_average else qsv_utils.min_max_update
        with _refusing():
            ranges = calibrator.Calibrator(self._content, num_threads=1, qsv_update_func=update)
            ranges.calibrate({key: [{feed: sample.reshape(shape)} for sample in samples]}, manager)
            found = ranges.get_model_qsvs()
        _check_ranges(found)
        self._ranges = found | {name: found[one.source] for one in self.folded for name in one.added}

    def quantize_by(self, scheme: Scheme) -> Quantized:
        """Return the model by a scheme.

        Raises:
            Rejected: as `quantize` does, and when the scheme comes to the same as int8 here.
        """
        stem = stem_layers(self.model)
        if scheme == "int8-float-stem" and not stem:
            raise Rejected("no convolution is over a single channel: it would be int8 itself")
        content, words = self._rewritten.get(scheme, (self._content, ()))
        return replace(self._quantize(content, scheme_recipe(scheme, stem)), rewritten=words)

    def quantize(self, recipe: Recipe) -> Quantized:
        """Return the model by the recipe, its graph as it is.

        Raises:
            Rejected: when the quantizer refuses the model or leaves it as it was, or ranges are needed and not known.
        """
        return self._quantize(self._content, recipe)

    def _quantize(self, content: bytes, recipe: Recipe) -> Quantized:
        manager = recipe_manager.RecipeManager()
        manager.load_quantization_recipe(recipe)
        if manager.need_calibration() and self._ranges is None:
            raise Rejected("no samples to calibrate with: give at least one, better a hundred")
        with _refusing():
            result = quantizer.Quantizer(content, recipe).quantize(
                self._ranges, enable_progress_bar=False, enable_progress_report=False
            )
        made = parse_model(bytes(result.quantized_model or b""), "the quantized model")
        found = check_changed(self.model, made)
        return Quantized(model_bytes(compact(made)), found)


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Turn what the quantizer raises into a refusal, and keep its progress bar to itself."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore", UserWarning)  # that keeping all tensors is for debugging
            yield
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as err:
        raise Rejected(f"ai-edge-quantizer refuses the model: {err}") from err


def _check_ranges(ranges: dict[str, Any]) -> None:
    for name, found in ranges.items():
        if not all(np.isfinite(found[end]).all() for end in ("min", "max") if end in found):
            raise Rejected(f"tensor {name!r} becomes NaN or infinite on the samples: these do not fit the model")
