"""Writes an ONNX model as a .tflite, by way of PyTorch: onnx2torch, then litert-torch (torch_module.py). In a child.

onnx2torch knows operators up to operator set 17, so a newer model is first brought down to that. It asks for
torchvision for two operators alone (NonMaxSuppression and RoiAlign), and torchvision works with exactly one build of
PyTorch: where it does not, a stand-in takes its place, and only a model with these operators is refused.

What PyTorch answers to a sample is held against ONNX Runtime, and torch_module.py holds the .tflite against PyTorch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from regatta_fleet.optimize.sources.torch_module import check_agreement, convert_module, short
from regatta_protocol.errors import Misuse, Rejected

__all__ = ["convert_onnx"]

Floats = npt.NDArray[np.float32]
_NEWEST_OPSET = 17
_TORCHVISION = ("torchvision", "torchvision.ops")


def convert_onnx(path: Path, output: Path, sample: Floats, layout: str) -> None:
    """Write an ONNX model as a .tflite.

    Args:
        sample: float32 [1, …], in the model's own layout, or [1, h, w, c] with layout channels-last.

    Raises:
        Rejected: when it is no ONNX model, or onnx2torch or litert-torch cannot convert it; operators are named.
        Misuse: when what is needed is not installed.
    """
    onnx, onnx2torch, runtime = _libraries()
    own = (
        np.ascontiguousarray(sample.transpose(0, 3, 1, 2)) if layout == "channels-last" and sample.ndim == 4 else sample
    )
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as err:
        raise Rejected(f"{path.name} is no ONNX model that can be read: {short(err)}") from err
    expected = _answers(runtime, path, own)
    try:
        module = onnx2torch.convert(_lowered(onnx, model)).eval()
    except Exception as err:
        hint = f"; export it with operator set {_NEWEST_OPSET} or below" if _opset(model) > _NEWEST_OPSET else ""
        raise Rejected(f"{path.name}: onnx2torch refuses it: {short(err)}{hint}") from err
    check_agreement(
        _of_torch(module, own, path.name), expected, f"{path.name}, as onnx2torch reads it,", "ONNX Runtime"
    )
    convert_module(module, output, sample, layout, path.name)


def _libraries() -> tuple[Any, Any, Any]:
    """Return onnx, onnx2torch and ONNX Runtime.

    Raises:
        Misuse: when one cannot be imported.
    """
    _stand_in_for_torchvision()
    try:
        import onnx
        import onnx2torch
        import onnxruntime
    except Exception as err:  # a broken install raises many things at import
        raise Misuse(
            f"models in ONNX are converted by onnx2torch, which cannot be used here ({short(err)}): "
            "pip install 'regatta-edge[train,onnx-import]'; or push the .onnx as it is: `regatta model push`"
        ) from err
    return onnx, onnx2torch, onnxruntime


def _stand_in_for_torchvision() -> None:
    """Let onnx2torch be imported where torchvision is not there, or is not of this build of PyTorch."""
    try:
        import torchvision  # noqa: F401
    except Exception:  # noqa: BLE001 - the wrong build raises RuntimeError, and leaves modules behind
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        whole, operators = (ModuleType(name) for name in _TORCHVISION)
        for name in ("nms", "box_convert", "roi_align"):
            setattr(operators, name, _refuse)
        setattr(whole, "ops", operators)  # noqa: B010 - a module has no such attribute for mypy
        sys.modules.update(zip(_TORCHVISION, (whole, operators), strict=True))


def _refuse(*_args: object, **_options: object) -> None:
    raise RuntimeError(
        "NonMaxSuppression and RoiAlign need torchvision, of the very build of your PyTorch: pip install torchvision"
    )


def _opset(model: Any) -> int:  # noqa: ANN401 - onnx.ModelProto
    """Return the version of ONNX's own operators that the model uses."""
    return max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=1)


def _lowered(onnx: Any, model: Any) -> Any:  # noqa: ANN401 - onnx.ModelProto
    """Return the model with operators that onnx2torch knows; raises whatever onnx does."""
    if _opset(model) <= _NEWEST_OPSET:
        return model
    from onnx import version_converter

    return version_converter.convert_version(model, _NEWEST_OPSET)


def _answers(runtime: Any, path: Path, sample: Floats) -> Floats:  # noqa: ANN401 - the module
    """Return what ONNX Runtime answers to the sample, with output 0."""
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        places = session.get_inputs()
        if len(places) != 1:
            raise Rejected(f"{path.name} has {len(places)} inputs: a model with one can be optimized")
        found = session.run(None, {places[0].name: sample})[0]
    except Rejected:
        raise
    except Exception as err:
        hint = "; are the samples [h, w, c]? then set `layout: channels-last`" if sample.ndim == 4 else ""
        raise Rejected(f"{path.name} does not take a sample {list(sample.shape)}: {short(err)}{hint}") from err
    return np.asarray(found, np.float32)


def _of_torch(module: Any, sample: Floats, name: str) -> Floats:  # noqa: ANN401 - torch.nn.Module
    import torch

    try:
        with torch.no_grad():
            found = module(torch.from_numpy(sample))
    except Exception as err:
        raise Rejected(f"{name}: what onnx2torch made of it cannot be run: {short(err)}") from err
    first = found[0] if isinstance(found, list | tuple) else found
    return np.asarray(first.numpy(), np.float32)
