"""Loads and calls a user's Python code, in a child process only. What it raises becomes a refusal that says where."""

from __future__ import annotations

import importlib
import importlib.util
import random
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from regatta_protocol.errors import RegattaError, Rejected

__all__ = ["guarded", "load_file", "load_module", "seed_everything"]

T = TypeVar("T")
_MAX_WORDS = 300


def load_file(file: Path) -> ModuleType:
    """Return the module in the file, which finds what lies beside it.

    Raises:
        Rejected: when it is no Python file, or raises while it is loaded.
    """
    sys.path.insert(0, str(file.parent.absolute()))
    found = importlib.util.spec_from_file_location("regatta_user_code", file)
    if found is None or found.loader is None:
        raise Rejected(f"{file.name} is no Python file: functions are looked for in a .py")
    module = importlib.util.module_from_spec(found)
    loader = found.loader
    guarded(file.name, "loading it", lambda: loader.exec_module(module))
    return module


def load_module(name: str) -> ModuleType:
    """Return an installed module, or one of the folder that the command runs in.

    Raises:
        Rejected: when there is none, or it raises while it is loaded.
    """
    sys.path.insert(0, str(Path.cwd()))
    return guarded(name, "loading it", lambda: importlib.import_module(name))


def guarded(name: str, what: str, call: Callable[[], T]) -> T:
    """Return what user's code returns.

    Raises:
        Rejected: naming the file, the line of it, what was called, and what it raised.
    """
    try:
        return call()
    except (MemoryError, RegattaError):
        raise
    except (Exception, SystemExit) as err:  # user's code: nothing of it may pass for ours
        traceback.print_exc()  # to the parent's log
        lines = [frame.lineno for frame in traceback.extract_tb(err.__traceback__) if Path(frame.filename).name == name]
        place = f", line {lines[-1]}" if lines else ""
        if isinstance(err, SyntaxError):
            place = f", line {err.lineno}"
        words = " ".join(str(err).split())[:_MAX_WORDS]
        raise Rejected(f"{name}{place}: {what} raised {type(err).__name__}: {words}") from err


def seed_everything(seed: int) -> None:
    """Seed every generator that user's code may draw from without asking."""
    random.seed(seed)
    np.random.seed(seed)
    torch: Any = sys.modules.get("torch")  # where the code has not loaded it, it needs no seed
    if torch is not None:
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
