"""The models that serving is measured with, and inputs for them."""

from __future__ import annotations

import os
from pathlib import Path

from regatta_agent.serving.tensors import Array
from regatta_runtimes.candidate import parse_candidate_id
from regatta_runtimes.worker.samples import random_inputs
from regatta_runtimes.worker.session import open_session, quantize

DEFAULT = ("kws_ref_model", "pretrainedResnet_quant", "vww_96_int8")
MOBILENET = "mobilenet_v2_1.0_224_quant"


def default_models() -> list[Path]:
    """Return the models beside the checkout, from 490 bytes of input to 150 KB."""
    root = Path(__file__).resolve().parents[2]
    stated = os.environ.get("REGATTA_SHARED")
    folders = [Path(stated)] if stated else [root.parent / "shared", root.parent.parent / "shared"]
    data = next((folder / "data" for folder in folders if (folder / "data").is_dir()), None)
    if data is None:
        return []
    return [*(data / "mlperf_tiny" / f"{name}.tflite" for name in DEFAULT), data / "coral" / f"{MOBILENET}.tflite"]


def sample_of(model: Path) -> Array:
    """Return an input of the model, of noise; it must have one."""
    session = open_session(parse_candidate_id("litert/model/xnnpack/t1"), model)
    (spec,) = session.inputs
    (noise,) = random_inputs([[spec]], count=1, seed=0)
    session.close()
    return quantize(noise.reshape([max(size, 1) for size in spec.shape]), spec)
