"""SavedModel and Keras to .tflite by TensorFlow's own converter, without its quantization. In a child process only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regatta_protocol.durable import write_durably
from regatta_protocol.errors import Misuse, Rejected

__all__ = ["convert_keras", "convert_savedmodel"]

_MAX_WORDS = 400
_LACKING = re.compile(r"'tf\.(\w+)' op is neither a custom op nor a flex op")
_DEFAULT = "serving_default"


def convert_savedmodel(folder: Path, output: Path, signature: str | None) -> str:
    """Write the SavedModel as a .tflite; returns the name of the signature that was taken.

    Args:
        signature: the one to take; None: the only one, or serving_default, which TensorFlow Serving takes too and
            Keras writes beside its twin, serve.

    Raises:
        Rejected: when it is not clear which signature to take, there is none of that name, or the graph has dynamic
            shapes, or operators that TFLite has not.
        Misuse: when TensorFlow is not installed.
    """
    tf = _tensorflow()
    try:
        signatures = dict(tf.saved_model.load(str(folder)).signatures)
    except Exception as err:
        raise Rejected(f"{folder.name}: TensorFlow cannot load it: {_short(err)}") from err
    chosen = _chosen(folder.name, tuple(signatures), signature)
    _check_shapes(folder.name, signatures[chosen].structured_input_signature[1])
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=[chosen])
    _write(converter, folder.name, output)
    return chosen


def convert_keras(path: Path, output: Path) -> None:
    """Write the Keras model as a .tflite.

    Raises:
        Rejected: when it cannot be loaded or converted.
        Misuse: when TensorFlow is not installed.
    """
    tf = _tensorflow()
    try:
        model = tf.keras.models.load_model(str(path), compile=False)
    except Exception as err:
        raise Rejected(f"{path.name}: Keras cannot load it: {_short(err)}") from err
    _check_shapes(path.name, {tensor.name: tensor for tensor in model.inputs})
    _write(tf.lite.TFLiteConverter.from_keras_model(model), path.name, output)


def _tensorflow() -> Any:  # noqa: ANN401  # a module without types
    try:
        import tensorflow
    except Exception as err:  # a broken install raises many things at import
        raise Misuse(
            f"SavedModel and Keras need TensorFlow, which cannot be used here ({_short(err)}): "
            "pip install 'regatta-edge[tensorflow]'; or convert to .tflite elsewhere and give that"
        ) from err
    return tensorflow


def _chosen(name: str, signatures: Sequence[str], asked: str | None) -> str:
    known = ", ".join(signatures) or "none"
    if asked is not None:
        if asked not in signatures:
            raise Rejected(f"{name} has no signature {asked!r}: it has {known}")
        return asked
    if not signatures:
        raise Rejected(f"{name} has no signature: save it with one (Keras: model.export)")
    if len(signatures) > 1 and _DEFAULT not in signatures:
        raise Rejected(
            f"{name} has {len(signatures)} signatures ({known}) and none is {_DEFAULT}: name one by `signature:` in "
            "the take step of a recipe"
        )
    return _DEFAULT if _DEFAULT in signatures else signatures[0]


def _check_shapes(name: str, inputs: dict[str, Any]) -> None:
    for key, spec in inputs.items():
        shape = [None if size is None else int(size) for size in spec.shape]
        if None in shape[1:]:
            raise Rejected(f"{name}: input {key!r} has a dynamic shape {shape}: export it with fixed sizes")


def _write(converter: Any, name: str, output: Path) -> None:  # noqa: ANN401  # TFLiteConverter has no types
    try:
        content = converter.convert()
    except Exception as err:
        lacking = sorted(set(_LACKING.findall(str(err))))
        if lacking:
            raise Rejected(f"{name}: TFLite has no operator for TensorFlow's {', '.join(lacking)}") from err
        raise Rejected(f"{name}: TensorFlow cannot convert it: {_short(err)}") from err
    write_durably(output, bytes(content), mode=0o644)


def _short(err: Exception) -> str:
    lines = [line for line in str(err).splitlines() if line.strip()]
    return f"{type(err).__name__}: {' '.join(' '.join(lines[:4]).split())[:_MAX_WORDS]}"
