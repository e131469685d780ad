"""From what an application sends to what it gets: a picture or a sound in, an answer's document out. Pure.

In the Open Inference Protocol a request says `"parameters": {"processed": true}` and has one input:
- pixels: UINT8 [height, width, 1, 3 or 4] (with or without a leading 1), or a file (JPEG, PNG, …) as BYTES [1];
- a sound: INT16 or FP32 [n] at the described sample rate, or a WAV file as BYTES [1];
- neither described: the model's own input, as in any request.

The answer has the output `result`, BYTES [1], a JSON document, and beside it what is large (`mask`). A request that
asks `result` for a number of classes (parameter `classification`) gets at most so many classes or objects. Why so:
docs/adr/0012-processed-requests.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from regatta_agent.processing.picture import PixelTable, View, as_picture, decode_picture, fit_picture
from regatta_agent.processing.results import Outcome, conclude
from regatta_agent.processing.sound import as_sound, decode_wav, samples_of
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Rejected
from regatta_protocol.fitting import check_processing
from regatta_protocol.processing import ClassificationResult, DetectionResult, Processing, Result
from regatta_protocol.values import TensorSpec
from regatta_runtimes.worker.session import dequantize, quantize

__all__ = ["Prepared", "Processor", "encode_document"]


@dataclass(frozen=True)
class Prepared:
    """What the model is run on: its inputs for each sample, and what it sees of the picture."""

    samples: tuple[list[Array], ...]
    view: View | None = None


class Processor:
    """Prepares inputs and reads outputs of one model, as its description says."""

    def __init__(
        self,
        processing: Processing,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        labels: Sequence[str] = (),
    ) -> None:
        """Keep the description.

        Raises:
            Rejected: when it does not fit the model.
        """
        check_processing(processing, inputs, outputs)
        self.processing = processing
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._labels = tuple(labels)
        self._result = processing.result or _result_of(outputs)
        self._table = None if processing.image is None else PixelTable(processing.image, inputs[0])

    def prepare(self, given: Array) -> Prepared:
        """Return what the model is run on.

        Args:
            given: pixels, a sound, or an object array with the bytes of one file.

        Raises:
            Rejected: when it is none of that, or damaged.
            TooLarge: when it has too many pixels or lasts too long.
        """
        file = _file_in(given)
        image, audio = self.processing.image, self.processing.audio
        if image is not None and self._table is not None:
            picture = as_picture(given, image.channels) if file is None else decode_picture(file, image.channels)
            fitted, view = fit_picture(picture, image)
            return Prepared(([self._table.apply(fitted)],), view)
        if audio is not None:
            sound = as_sound(given) if file is None else decode_wav(file, audio.sample_rate_hz)
            spec = self._inputs[0]
            shape = [max(1, size) for size in spec.shape]
            return Prepared(tuple([quantize(row.reshape(shape), spec)] for row in samples_of(sound, audio)))
        raise Rejected("this model's manifest describes neither a picture nor a sound: send its own inputs")

    @property
    def takes_raw(self) -> bool:
        """Whether a processed request has the model's own inputs, since nothing else is described."""
        return self.processing.image is None and self.processing.audio is None

    def conclude(self, prepared: Prepared, outputs: Sequence[Sequence[Array]], top: int = 0) -> Outcome:
        """Return what the outputs of each sample mean.

        Args:
            prepared: what the model was run on.
            outputs: of each sample, in the model's order and dtypes.
            top: how many classes or objects at most; 0: as described.

        Raises:
            Rejected: when nothing says what they mean, or they are not finite.
        """
        if self._result is None:
            raise Rejected("this model's manifest does not describe its result: ask for its outputs")
        result = self._result
        if top > 0 and isinstance(result, ClassificationResult | DetectionResult):
            result = replace(result, top=top)
        real = [[_real(*pair) for pair in zip(one, self._outputs, strict=True)] for one in outputs]
        inputs = [dequantize(sample[0], self._inputs[0]) for sample in prepared.samples]
        return conclude(result, real, inputs, prepared.view, self._labels)

    def describe(self) -> dict[str, object]:
        """Return what a client needs to know, for the model's metadata."""
        processing, result = self.processing, self._result
        kind = "image" if processing.image is not None else "audio" if processing.audio is not None else "tensors"
        described: dict[str, object] = {"input": kind, "result": None if result is None else result.kind}
        if processing.audio is not None:
            described["sample_rate_hz"] = processing.audio.sample_rate_hz
        return described


def encode_document(outcome: Outcome) -> Array:
    """Return the document as the BYTES [1] that an answer carries."""
    text = np.empty(1, dtype=object)
    text[0] = json.dumps(outcome.document, separators=(",", ":"), ensure_ascii=False).encode()
    return text


def _file_in(given: Array) -> bytes | None:
    """Return the file that a BYTES tensor holds, or None when it is another tensor."""
    if given.dtype != object:
        return None
    if given.size != 1 or not isinstance(given.flat[0], bytes):
        raise Rejected(f"a file is sent as BYTES [1], and BYTES {list(given.shape)} came")
    return given.flat[0]


def _real(array: Array, spec: TensorSpec) -> Array:
    return dequantize(array, spec) if spec.scale is not None else array


def _result_of(outputs: Sequence[TensorSpec]) -> Result | None:
    """Return the result of a model that has none described: classes, when its one output is a row of numbers."""
    shape = outputs[0].shape if outputs else ()
    row = len(shape) >= 1 and shape[-1] > 1 and all(size in (1, -1) for size in shape[:-1])
    return ClassificationResult() if row and len(outputs) == 1 else None
