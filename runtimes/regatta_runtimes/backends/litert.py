"""LiteRT, package ai-edge-litert: the default runtime."""

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
        return import_module("ai_edge_litert.interpreter")
    except ImportError as err:
        raise RuntimeMissing(
            f"LiteRT cannot be imported ({err}): pip install ai-edge-litert (64-bit boards, Python 3.10 or newer)"
        ) from err


def version() -> str:
    """Return the version that is installed, after importing it."""
    _vendor()
    return metadata.version("ai-edge-litert")


def open_session(candidate: Candidate, model_path: Path) -> Session:
    """Return the model opened by LiteRT."""
    return InterpreterSession.open(_vendor(), candidate, model_path)
