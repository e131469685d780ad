"""What a worker keeps out of its memory, and in which order it is imported for that.

Nothing is missing: what is kept out is loaded when it is used after all (unloaded.py). docs/footprint.md has the figures.
This module imports nothing of pydantic, which would bring what is to be kept out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from regatta_agent.unloaded import absent, deferred, leave_out

__all__ = ["NUMPY_PARTS", "SELDOM", "asks_for_tls", "import_main", "keeping_out"]

NUMPY_PARTS = {  # numpy 1 imports them all, numpy 2 those that are used
    "numpy.ctypeslib": "arrays of foreign libraries",
    "numpy.fft": "spectra, of sounds only",
    "numpy.ma": "masked arrays",
    "numpy.polynomial": "polynomials",
    "numpy.random": "drawing a model's inputs where its version has no golden samples",
}
SELDOM = {
    "bz2": "zip files may be packed with it, and ours are not",
    "hashlib": "digests are checked before a worker starts; brings OpenSSL",
    "hmac": "comparing tokens, of TCP only; brings OpenSSL",
    "lzma": "as bz2",
    "secrets": "pydantic imports it; brings hmac",
    "ssl": "TCP with TLS only",
}
_SPEC_BYTES = 65_536  # spec.py's MAX_SPEC_BYTES
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # runtimes are told how many they may have


def asks_for_tls(arguments: Sequence[str]) -> bool:
    """Return whether the spec file that a worker is given asks for TLS; of one that cannot be read, its main tells."""
    try:
        with Path(arguments[0]).open("rb") as file:
            return json.loads(file.read(_SPEC_BYTES)).get("tls") is not None
    except (IndexError, OSError, ValueError, AttributeError):
        return True


@contextmanager
def keeping_out(tls: bool) -> Iterator[None]:
    """Keep out what is imported in this context and can be done without.

    Args:
        tls: whether asyncio shall speak TLS.
    """
    for name, value in _ONE_THREAD.items():
        os.environ.setdefault(name, value)
    leave_out(("importlib.metadata",))  # pydantic asks it for plug-ins, which are off: email, zipfile, csv, 1.5 MB
    if not tls:
        with absent(("ssl",)):
            import asyncio  # noqa: F401 - it allows for a Python without TLS
    with deferred((*NUMPY_PARTS, *SELDOM)):
        yield


def import_main(tls: bool) -> Callable[[list[str], int], int]:
    """Return the worker's `main`; see `keeping_out`."""
    with keeping_out(tls):
        from regatta_agent.serving.worker import main
    return main
