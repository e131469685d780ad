"""Bugs that the lab plants in the agent on request, to prove that each of its layers finds what it is for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

from regatta_agent.disk import partial, priors, quarantine_file, record, store
from regatta_agent.disk.digests import Digests
from regatta_agent.disk.patience import Patience
from regatta_protocol import durable
from regatta_protocol.errors import StorageFull
from regatta_protocol.manifest import FileRef

__all__ = ["BUGS", "planted"]

_WRITERS = (record, store, partial, priors, quarantine_file)


def _in_place(stack: ExitStack) -> None:
    """Files are written in place of the good copy."""

    def write(path: Path, data: bytes, mode: int = 0o600) -> None:
        path.write_bytes(data)

    for module in _WRITERS:
        stack.enter_context(mock.patch.object(module, "write_durably", write))


def _blob_in_place(stack: ExitStack) -> None:
    """Downloads grow among the verified files."""
    begin = partial.PartialFile.__init__

    def begin_in_place(
        self: partial.PartialFile, folder: Path, blobs: Path, file: FileRef, chunk_bytes: int, digests: Digests,
        boot: bytes | None = None,
    ) -> None:  # fmt: skip
        begin(self, blobs, blobs, file, chunk_bytes, digests, boot)

    stack.enter_context(mock.patch.object(partial.PartialFile, "__init__", begin_in_place))


def _no_sync(stack: ExitStack) -> None:
    """Nothing that is written is synced."""
    stack.enter_context(mock.patch.object(os, "fsync", lambda _file: None))


def _no_folder_sync(stack: ExitStack) -> None:
    """A rename is not synced."""
    stack.enter_context(mock.patch.object(durable, "sync_folder", lambda _folder: None))


def _deaf(stack: ExitStack) -> None:
    """What cannot be written counts as written."""
    write = durable.write_durably

    def write_or_not(path: Path, data: bytes, mode: int = 0o600) -> None:
        with contextlib.suppress(OSError, StorageFull):
            write(path, data, mode)

    for module in _WRITERS:
        stack.enter_context(mock.patch.object(module, "write_durably", write_or_not))


def _impatient(stack: ExitStack) -> None:
    """What a disk refuses is tried again at once."""
    stack.enter_context(mock.patch.object(Patience, "may_ask", lambda *_arguments: True))


BUGS = {
    "in-place": _in_place,
    "blob-in-place": _blob_in_place,
    "no-sync": _no_sync,
    "no-folder-sync": _no_folder_sync,
    "deaf": _deaf,
    "impatient": _impatient,
}


@contextlib.contextmanager
def planted(bug: str | None) -> Iterator[None]:
    """Put the bug in place of the right code."""
    with ExitStack() as stack:
        if bug is not None:
            BUGS[bug](stack)
        yield
