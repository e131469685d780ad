"""Runs a float model on samples and returns what its tensors hold. Only in the optimizer's child process.

LiteRT's own kernels are used without delegates, which would hide the tensors between layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from regatta_protocol.errors import Rejected

__all__ = ["record"]

Floats = npt.NDArray[np.float32]


def record(model: bytes, samples: Floats, tensors: Sequence[int]) -> dict[int, Floats]:
    """Return for each tensor its values float32 [n, …], batch taken out.

    Args:
        model: content of a .tflite file whose input 0 is float32 with a batch of 1.
        samples: real values [n, …] for input 0.
        tensors: indices in the model's only subgraph.

    Raises:
        Rejected: when the runtime refuses the model, or a sample's size is not the input's.
    """
    try:
        interpreter = Interpreter(
            model_content=model,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            experimental_preserve_all_tensors=True,
            num_threads=1,
        )
        interpreter.allocate_tensors()
        place = interpreter.get_input_details()[0]
        shape = tuple(int(size) for size in place["shape"])
        found: dict[int, list[Floats]] = {index: [] for index in tensors}
        for sample in samples:
            interpreter.set_tensor(place["index"], sample.reshape(shape).astype(np.float32))
            interpreter.invoke()
            for index in found:  # a tensor may be asked for twice, where two layers read it
                found[index].append(interpreter.get_tensor(index)[0])
    except (ValueError, RuntimeError) as err:
        raise Rejected(f"LiteRT cannot run the model on the samples: {err}") from err
    return {index: np.stack(values) for index, values in found.items()}
