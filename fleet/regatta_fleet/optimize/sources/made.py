"""Writes what user's code made as a .tflite: a PyTorch module, bytes, or the path of a model file. In a child only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from regatta_fleet.optimize.model_file import parse_model
from regatta_fleet.optimize.sources.onnx_model import convert_onnx
from regatta_fleet.optimize.sources.torch_module import convert_module
from regatta_protocol.durable import read_bounded, write_durably
from regatta_protocol.errors import Rejected
from regatta_protocol.manifest import MAX_FILE_BYTES

__all__ = ["write_made"]

Floats = npt.NDArray[np.float32]


def write_made(model: object, output: Path, sample: Floats, layout: str, what: str) -> None:
    """Write the model as a .tflite.

    Args:
        sample: float32 [1, …], what a PyTorch module is traced with.
        what: begins the errors: where the model came from.

    Raises:
        Rejected: when it is nothing that can be written, or cannot be converted.
        Misuse: when litert-torch is not installed.
    """
    if isinstance(model, bytes | bytearray):
        content = bytes(model)
        parse_model(content, what)
        write_durably(output, content, mode=0o644)
    elif isinstance(model, str | Path):
        path = Path(model)
        if path.suffix == ".onnx":
            convert_onnx(path, output, sample, layout)
            return
        if not path.is_file():
            raise Rejected(f"{what} names {path}, which is not there")
        write_made(read_bounded(path, MAX_FILE_BYTES), output, sample, layout, what)
    elif _is_module(model):
        convert_module(model, output, sample, layout, what)
    else:
        raise Rejected(
            f"{what} is a {type(model).__name__}: return a torch.nn.Module, the bytes of a .tflite or a path"
        )


def _is_module(model: object) -> bool:
    return any(kind.__module__.startswith("torch.nn") and kind.__name__ == "Module" for kind in type(model).__mro__)
