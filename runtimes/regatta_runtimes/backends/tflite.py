"""tflite-runtime 2.14, the last release (2023): for libedgetpu and boards without LiteRT wheels. Needs numpy < 2."""

from __future__ import annotations

from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from regatta_runtimes.backends.interpreter import InterpreterSession
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.errors import RuntimeMissing
from regatta_runtimes.worker.session import Session

__all__ = ["open_session", "version"]


def _vendor() -> Any:  # noqa: ANN401 - an untyped module
    try:
        return import_module("tflite_runtime.interpreter")
    except ImportError as err:
        raise RuntimeMissing(
            f"tflite-runtime cannot be imported ({err}): pip install 'regatta-edge[tflite]' (Python 3.11 or older)"
        ) from err


def version() -> str:
    """Return the version that is installed, after importing it."""
    _vendor()
    return metadata.version("tflite-runtime")


def open_session(candidate: Candidate, model_path: Path) -> Session:
    """Return the model opened by tflite-runtime."""
    return InterpreterSession.open(_vendor(), candidate, model_path)
