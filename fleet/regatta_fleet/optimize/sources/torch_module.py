"""Writes a PyTorch module as a .tflite by litert-torch, and holds what it answers against PyTorch. In a child only.

litert-torch traces a module with one sample, which fixes every shape; what it cannot lower is named.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regatta_fleet.optimize.answers import real_answers
from regatta_protocol.errors import Misuse, Rejected

__all__ = ["check_agreement", "convert_module", "short"]

Floats = npt.NDArray[np.float32]
_MAX_WORDS = 400
_AGREE = 0.01  # of the largest value; float32 and another order of adding differ by some 1e-5
_OPERATOR = re.compile(r"\b(?:aten|torchvision|prims)[.:]+[\w.:]+")


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
            f"PyTorch modules need litert-torch, which cannot be used here ({short(err)}): "
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
        raise Rejected(f"{what} does not take a sample of shape {list(sample.shape)}: {short(err)}{hint}") from err
    if not isinstance(found, torch.Tensor):
        raise Rejected(f"{what} answers with a {type(found).__name__}: it must answer with one tensor")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            litert_torch.convert(module, (example,)).export(str(output))
    except Exception as err:
        operators = sorted(set(_OPERATOR.findall(str(err))))
        named = f" (operators {', '.join(operators)})" if operators else ""
        raise Rejected(f"{what}: litert-torch cannot convert it{named}: {short(err)}") from err
    try:
        check_agreement(real_answers(output, sample), found.numpy(), f"{what}, as litert-torch wrote it,", "PyTorch")
    except Rejected:
        output.unlink(missing_ok=True)
        raise


def check_agreement(answers: Floats, expected: Floats, what: str, reference: str) -> None:
    """Check that a conversion changed no answer but by rounding: 1 % of the largest value at most.

    Raises:
        Rejected: when it did; the message has the difference.
    """
    largest = float(np.abs(expected).max(initial=0.0))
    if answers.size != expected.size or not np.isfinite(answers).all():
        raise Rejected(f"{what} answers a sample with {answers.size} values, or not with numbers, unlike {reference}")
    apart = float(np.abs(answers.reshape(-1) - expected.reshape(-1)).max(initial=0.0))
    if apart > _AGREE * largest + 1e-6:
        raise Rejected(
            f"{what} answers otherwise than {reference}: {apart:.3g} apart, where the largest value is {largest:.3g}"
        )


def short(err: Exception) -> str:
    """Return the kind and the first lines of an error of somebody's library."""
    lines = [line for line in str(err).splitlines() if line.strip()]
    return f"{type(err).__name__}: {' '.join(' '.join(lines[:4]).split())[:_MAX_WORDS]}"
