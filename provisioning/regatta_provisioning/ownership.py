"""Acting as the user whom a folder belongs to, so that root's commands leave files that the service can read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["as_owner_of"]


@contextmanager
def as_owner_of(folder: Path) -> Iterator[None]:
    """Act as the user that owns `folder` when we are root.

    Switching beats a chown afterwards: no crash can leave a file that the service may not read.
    """
    owner = folder.stat() if folder.is_dir() else None
    if os.geteuid() != 0 or owner is None or owner.st_uid == 0:
        yield
        return
    own_group = os.getegid()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(own_group)
