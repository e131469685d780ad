"""One record to one answer, as a document: classes, objects, a mask, keypoints, an anomaly, or the model's outputs.

The model's metadata decides: what the worker prepares is sent to it whole; the model's own inputs are sent as they are,
and answered with classes where its output is a row of them. Shared by the commands and pipelines of this program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regatta_agent.client import Client
from regatta_agent.client.messages import is_sent_whole
from regatta_agent.serving.tensors import Array

__all__ = ["Reply", "ask"]


@dataclass(frozen=True)
class Reply:
    """The document of an answer; `mask` is the map of a segmentation."""

    document: dict[str, Any]
    mask: Array | None = None


def ask(client: Client, model: str, item: bytes | Array, *, top: int = 0, request_id: str | None = None) -> Reply:
    """Return the model's answer.

    Args:
        client: whose worker serves the model.
        model: its name.
        item: a file's bytes or an array.
        top: how many classes or objects at most; 0: as the manifest says, and 5 without one.
        request_id: an id to give feedback with later.

    Raises:
        Rejected: when the worker refuses it.
        Retryable: when the worker is away, busy or fails.
    """
    metadata = client.metadata(model)
    if is_sent_whole(item, metadata):
        done = client.process(model, item, top=top, request_id=request_id)
        return Reply(done.document, done.arrays.get("mask"))
    assert not isinstance(item, bytes)
    if _is_row(metadata["outputs"][0]):
        scores = client.classify(model, item, top=top or 5, request_id=request_id)
        classes = [{"index": one.index, "score": one.score, "label": one.label} for one in scores]
        return Reply({"kind": "classification", "classes": classes})
    outputs = client.infer(model, item, request_id=request_id)
    return Reply(
        {
            "kind": "outputs",
            "outputs": {name: {"shape": list(o.shape), "values": o.ravel().tolist()} for name, o in outputs.items()},
        }
    )


def _is_row(output: Mapping[str, Any]) -> bool:
    shape = [int(size) for size in output["shape"]]
    return bool(shape) and shape[-1] > 1 and all(size in (1, -1) for size in shape[:-1])
