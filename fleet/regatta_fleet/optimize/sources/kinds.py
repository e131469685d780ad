"""What kind of source a text names. Pure but for a look at the disk; nothing is imported."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from regatta_protocol.errors import Rejected

__all__ = ["SourceKind", "SourceName", "name_source"]

SourceKind = Literal["tflite", "savedmodel", "keras", "onnx", "torch"]
_SUFFIXES: dict[str, SourceKind] = {".tflite": "tflite", ".keras": "keras", ".h5": "keras", ".onnx": "onnx"}
_FACTORY = re.compile(r"(?P<module>[\w.]+|.+\.py):(?P<factory>[A-Za-z_]\w*)")


@dataclass(frozen=True)
class SourceName:
    """A source; `factory` is the function of a PyTorch module, in the module or file `place`."""

    kind: SourceKind
    place: str
    factory: str | None = None


def name_source(text: str) -> SourceName:
    """Return what the text names.

    Raises:
        Rejected: when it names no model that can be taken; the text says what can.
    """
    path = Path(text)
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return SourceName("savedmodel", text)
        raise Rejected(f"{text} is a folder without saved_model.pb: name a SavedModel's own folder, or a model file")
    if path.is_file():
        kind = _SUFFIXES.get(path.suffix.lower())
        if kind is not None:
            return SourceName(kind, text)
        if path.suffix in (".pt", ".pth"):
            raise Rejected(
                f"{text} holds weights or pickled code, not a model that can be built: write a function that returns "
                "the module, and name it as FILE.py:FUNCTION"
            )
        if path.read_bytes()[4:8] == b"TFL3":
            return SourceName("tflite", text)
        raise Rejected(f"{text} is no model that is known: give {_KNOWN}")
    found = _FACTORY.fullmatch(text)
    if found is not None:
        if found["module"].endswith(".py") and not Path(found["module"]).is_file():
            raise Rejected(f"there is no file {found['module']}, which {text} names")
        return SourceName("torch", found["module"], found["factory"])
    raise Rejected(f"there is no model {text}: give {_KNOWN}")


_KNOWN = ".tflite, .onnx, .keras, .h5, the folder of a SavedModel, or MODULE:FACTORY of a PyTorch module"
