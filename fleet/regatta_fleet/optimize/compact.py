"""Makes a finished model file smaller without changing what it computes. Pure over the tree.

Names of inner tensors serve debuggers only, and were a quarter of an int8 keyword spotter (55.7 -> 43.7 KB); inputs,
outputs and signatures keep theirs. Converters leave a log of theirs in the metadata. Constants that are equal are
stored once.
"""

from __future__ import annotations

from regatta_fleet.optimize.model_file import ModelTree, text_of

__all__ = ["compact"]

_CONVERTER_METADATA = {"CONVERSION_METADATA", "min_runtime_version"}


def compact(model: ModelTree) -> ModelTree:
    """Return `model`, changed in place."""
    for graph in model.subgraphs:
        public = {int(index) for index in (*graph.inputs, *graph.outputs)}
        for index, tensor in enumerate(graph.tensors):
            if index not in public:
                tensor.name = None
    model.metadata = [entry for entry in model.metadata or [] if text_of(entry.name) not in _CONVERTER_METADATA]
    _store_once(model)
    return model


def _store_once(model: ModelTree) -> None:
    """Number the buffers that are in use anew, equal ones as one; buffer 0 stays, which stands for no data."""
    places: dict[bytes, int] = {b"": 0}
    kept = [model.buffers[0]]

    def place_of(old: int) -> int:
        data = model.buffers[old].data
        content = b"" if data is None else bytes(bytearray(data))
        if content not in places:
            places[content] = len(kept)
            kept.append(model.buffers[old])
        return places[content]

    for holder in [*(tensor for graph in model.subgraphs for tensor in graph.tensors), *model.metadata]:
        holder.buffer = place_of(int(holder.buffer))
    model.buffers = kept
