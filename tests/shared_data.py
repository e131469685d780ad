"""Where the real models and samples lie, when this checkout has them beside it. Tests skip, with a reason, when not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

__all__ = ["REPOSITORY", "shared_file"]

REPOSITORY = Path(__file__).resolve().parent.parent


def shared_file(name: str) -> Path:
    """Return the path of a file of the shared data, for example `coral/cat.bmp`; skips the test when it is absent."""
    stated = os.environ.get("REGATTA_SHARED")
    folders = [Path(stated)] if stated else [REPOSITORY.parent / "shared", REPOSITORY.parent.parent / "shared"]
    for folder in folders:
        path = folder / "data" / name
        if path.is_file():
            return path
    pytest.skip(f"the shared data file {name} is not beside this checkout (REGATTA_SHARED names its folder)")
