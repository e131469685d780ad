"""Where the real models and samples lie, when this checkout has them beside it. Tests skip, with a reason, when not."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["REPOSITORY", "find_shared", "shared_file", "shared_files"]

REPOSITORY = Path(__file__).resolve().parent.parent


def find_shared(pattern: str) -> list[Path]:
    """Return the files of the shared data that match, in order: none when the data are absent."""
    stated = os.environ.get("REGATTA_SHARED")
    folders = [Path(stated)] if stated else [REPOSITORY.parent / "shared", REPOSITORY.parent.parent / "shared"]
    return next((found for folder in folders if (found := sorted((folder / "data").glob(pattern)))), [])


def shared_files(pattern: str) -> list[Path]:
    """Return the files that match, for example `mlperf_tiny/*.tflite`; skips the test when there are none."""
    import pytest  # here: the accelerators' check is a program, in an environment that has no pytest

    found = find_shared(pattern)
    if not found:
        pytest.skip(f"the shared data {pattern} are not beside this checkout (REGATTA_SHARED names their folder)")
    return found


def shared_file(name: str) -> Path:
    """Return the path of a file of the shared data, for example `coral/cat.bmp`; skips the test when it is absent."""
    return shared_files(name)[0]
