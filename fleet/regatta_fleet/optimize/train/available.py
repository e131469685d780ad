"""Says whether PyTorch is installed, without importing it."""

from __future__ import annotations

import importlib.util

from regatta_protocol.errors import Misuse

__all__ = ["has_torch", "require_torch"]


def has_torch() -> bool:
    """Return whether models can be trained here."""
    return importlib.util.find_spec("torch") is not None


def require_torch() -> None:
    """Refuse to go on without PyTorch.

    Raises:
        Misuse: naming the extra to install.
    """
    if not has_torch():
        raise Misuse("training needs PyTorch: pip install 'regatta-edge[train]'")
