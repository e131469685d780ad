"""The ways to quantize a whole model, by name. Pure: what they mean to ai-edge-quantizer is in `recipes`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["SCHEMES", "LayerPrecision", "Scheme", "SchemeFacts"]

Scheme = Literal["int8", "int8-unfolded", "int8-float-stem", "int8-weights", "int4-weights", "float16", "int8-dynamic"]
LayerPrecision = Literal["int8", "int4", "float32"]


@dataclass(frozen=True)
class SchemeFacts:
    """What a scheme does, in words, and whether it takes ranges from samples."""

    words: str
    calibrated: bool = False


# Measured (./run bench-optimize): int8 is the fast one, yet a convolution over a single channel is faster in float with
# XNNPACK (whose int8 kernels take several input channels at a time), unless its stride can be folded into channels;
# weight-only computes in float at float's speed when its weights are int8 or float16; int4 weights and dynamic int8 are
# mostly slower than float on an x86 CPU.
SCHEMES: dict[Scheme, SchemeFacts] = {
    "int8": SchemeFacts("weights and activations int8, min-max ranges", calibrated=True),
    "int8-unfolded": SchemeFacts(
        "weights and activations int8, min-max ranges; no stride folded into channels", calibrated=True
    ),
    "int8-float-stem": SchemeFacts(
        "weights and activations int8, min-max ranges; convolutions over a single channel stay in float32",
        calibrated=True,
    ),
    "int8-weights": SchemeFacts("weights int8, computed in float"),
    "int4-weights": SchemeFacts("weights int4 by least squared error (depthwise int8), computed in float"),
    "float16": SchemeFacts("weights float16, computed in float"),
    "int8-dynamic": SchemeFacts("weights int8, activations int8 with ranges found at run time"),
}
assert tuple(SCHEMES) == get_args(Scheme)
