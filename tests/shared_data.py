"""Where the real models for tests lie; tests that need them skip with a reason when they are absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

__all__ = ["shared_file"]

_REPOSITORY = Path(__file__).parent.parent


def shared_file(name: str) -> Path:
    """Return a file of the shared data folder, or skip the test."""
    given = os.environ.get("REGATTA_SHARED")
    folders = [Path(given)] if given else [_REPOSITORY.parent / "shared", _REPOSITORY.parent.parent / "shared"]
    for folder in folders:
        if (folder / "data" / name).is_file():
            return folder / "data" / name
    pytest.skip(f"{name} is not in {' or '.join(map(str, folders))}: set REGATTA_SHARED to try it")
