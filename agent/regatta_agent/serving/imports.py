"""What a worker keeps out of its memory of what libraries import, for it never or seldom uses that.

Nothing is missing: each is loaded when something in it is used after all (unloaded.py). docs/footprint.md has the
figures. This module itself imports nothing that would bring any of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from regatta_agent.process.unloaded import deferred, leave_out

__all__ = ["KEPT_OUT", "keeping_out"]

KEPT_OUT = {
    "asyncio.sslproto": "TCP with TLS only",
    "bz2": "zip files may be packed with it, and ours are not",
    "hashlib": "digests are checked before a worker starts; brings OpenSSL",
    "hmac": "comparing tokens, of TCP only; brings OpenSSL",
    "ipaddress": "addresses of TCP",
    "locale": "subprocess asks it for the encoding of text, and is given bytes",
    "lzma": "as bz2",
    "pickle": "nobody's pickles are read",
    "platform": "numpy tells bug reports of it",
    "ssl": "TCP with TLS only; brings OpenSSL",
    "statistics": "what a power sensor tells; brings decimal and fractions",
    "tokenize": "linecache and inspect read sources with it",
    "wave": "sounds only",
    # numpy 1 imports these all, numpy 2 those that are used
    "numpy.core._add_newdocs": "docstrings",
    "numpy.core._add_newdocs_scalars": "docstrings",
    "numpy._core._add_newdocs": "docstrings, in numpy 2",
    "numpy._core._add_newdocs_scalars": "docstrings, in numpy 2",
    "numpy.ctypeslib": "arrays of foreign libraries",
    "numpy.fft": "spectra, of sounds only",
    "numpy.ma": "masked arrays",
    "numpy.polynomial": "polynomials",
    "numpy.random": "drawing a model's inputs where its version has no golden samples",
}
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # runtimes are told how many they may have


@contextmanager
def keeping_out() -> Iterator[None]:
    """Keep KEPT_OUT out of what is imported meanwhile, and numpy from starting threads."""
    for name, value in _ONE_THREAD.items():
        os.environ.setdefault(name, value)
    leave_out(("importlib.metadata",))  # asked for a runtime's version, by races: email, zipfile, csv, 1.5 MB
    with deferred(KEPT_OUT):
        yield
