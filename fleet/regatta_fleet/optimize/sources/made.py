"""Writes what user's code made as a .tflite: a PyTorch module, bytes, or the path of a model file. In a child only.

litert-torch traces a module with one sample, which fixes every shape; what it cannot lower is named.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regatta_fleet.optimize.model_file import parse_model
from regatta_protocol.durable import read_bounded, write_durably
from regatta_protocol.errors import Misuse, Rejected
from regatta_protocol.manifest import MAX_FILE_BYTES

__all__ = ["convert_module", "convert_onnx", "write_made"]

Floats = npt.NDArray[np.float32]
_MAX_WORDS = 400
_OPERATOR = re.compile(r"\b(?:aten|torchvision|prims)[.:]+[\w.:]+")


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


def convert_onnx(path: Path, output: Path, sample: Floats, layout: str) -> None:
    """Write an ONNX model as a .tflite, by way of PyTorch.

    Raises:
        Rejected: when onnx2torch or litert-torch cannot.
        Misuse: when one of them is not installed.
    """
    try:
        import onnx2torch
    except Exception as err:  # a broken install raises many things at import
        raise Misuse(
            f"models in ONNX need onnx2torch, which cannot be used here ({_short(err)}): "
            "pip install 'regatta-edge[train,onnx-import]'; or push the .onnx as it is: `regatta model push`"
        ) from err
    try:
        module = onnx2torch.convert(str(path)).eval()
    except Exception as err:
        raise Rejected(f"{path.name}: onnx2torch refuses it: {_short(err)}") from err
    convert_module(module, output, sample, layout, path.name)


def convert_module(module: Any, output: Path, sample: Floats, layout: str, what: str) -> None:  # noqa: ANN401  # torch.nn.Module
    """Write a PyTorch module as a .tflite.

    Raises:
        Rejected: when it does not take the sample, or litert-torch cannot lower it; operators are named.
        Misuse: when litert-torch is not installed.
    """
    try:
        import litert_torch
        import torch
    except Exception as err:  # as above
        raise Misuse(
            f"PyTorch modules need litert-torch, which cannot be used here ({_short(err)}): "
            "pip install 'regatta-edge[train]'"
        ) from err
    example = torch.from_numpy(np.ascontiguousarray(sample))
    module = module.eval()
    if layout == "channels-last":
        if sample.ndim != 4:
            raise Rejected(f"{what}: layout channels-last is for pictures; the samples are {list(sample.shape[1:])}")
        module = litert_torch.to_channel_last_io(module, args=[0])
    try:
        with torch.no_grad():
            found = module(example)
    except Exception as err:
        hint = "" if layout == "channels-last" else "; are the samples [h, w, c]? then set `layout: channels-last`"
        raise Rejected(f"{what} does not take a sample of shape {list(sample.shape)}: {_short(err)}{hint}") from err
    if not isinstance(found, torch.Tensor):
        raise Rejected(f"{what} answers with a {type(found).__name__}: it must answer with one tensor")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            litert_torch.convert(module, (example,)).export(str(output))
    except Exception as err:
        operators = sorted(set(_OPERATOR.findall(str(err))))
        named = f" (operators {', '.join(operators)})" if operators else ""
        raise Rejected(f"{what}: litert-torch cannot convert it{named}: {_short(err)}") from err


def _is_module(model: object) -> bool:
    return any(kind.__module__.startswith("torch.nn") and kind.__name__ == "Module" for kind in type(model).__mro__)


def _short(err: Exception) -> str:
    lines = [line for line in str(err).splitlines() if line.strip()]
    return f"{type(err).__name__}: {' '.join(' '.join(lines[:4]).split())[:_MAX_WORDS]}"
