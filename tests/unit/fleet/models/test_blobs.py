"""A blob's name always tells its content, whatever goes wrong on its way in."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from regatta_fleet.models.blobs import BlobStore
from regatta_protocol.errors import BadDigest, Rejected, StorageFull, TooLarge
from regatta_protocol.ids import digest_of_bytes
from regatta_protocol.manifest import FileRef

DATA = b"model" * 1000
DIGEST = digest_of_bytes(DATA)


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    store = BlobStore(tmp_path / "blobs", limit_bytes=10_000)
    store.prepare()
    return store


def _incoming(blobs: BlobStore) -> list[Path]:
    return list((blobs.folder / ".incoming").iterdir())


def test_a_blob_comes_in_by_pieces(blobs: BlobStore) -> None:
    """And may come twice."""
    for _ in range(2):
        with blobs.receive(DIGEST) as upload:
            upload.write(DATA[:7])
            upload.write(DATA[7:])
            assert upload.finish(blobs.path(DIGEST)) == len(DATA)

    assert blobs.path(DIGEST).read_bytes() == DATA
    assert blobs.size_bytes(DIGEST) == len(DATA)
    assert _incoming(blobs) == []


def test_another_content_is_refused(blobs: BlobStore) -> None:
    """Nothing stays of it."""
    with pytest.raises(BadDigest, match="send it again"), blobs.receive(DIGEST) as upload:
        upload.write(DATA[:-1])
        upload.finish(blobs.path(DIGEST))

    assert blobs.size_bytes(DIGEST) is None
    assert _incoming(blobs) == []


def test_a_file_over_the_limit_is_refused(blobs: BlobStore) -> None:
    """As soon as it is over."""
    with pytest.raises(TooLarge, match="10000"), blobs.receive(DIGEST) as upload:
        upload.write(b"x" * 10_001)
    assert _incoming(blobs) == []


@pytest.mark.parametrize("call", ["open", "write", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_apart(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    """The caller may wait for space; nothing stays of the half file."""

    def full(*_args: object) -> int:
        raise OSError(number, "full")

    with pytest.raises(StorageFull, match="free some"), monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with blobs.receive(DIGEST) as upload:
            upload.write(DATA)
            upload.finish(blobs.path(DIGEST))
    assert blobs.size_bytes(DIGEST) is None
    assert _incoming(blobs) == []


def test_what_a_killed_upload_left_is_removed(blobs: BlobStore) -> None:
    """At the next start."""
    (blobs.folder / ".incoming" / "half").write_bytes(b"ha")
    blobs.put(DATA)

    blobs.prepare()

    assert _incoming(blobs) == []
    assert blobs.size_bytes(DIGEST) == len(DATA)


def test_files_that_a_bundle_requires(blobs: BlobStore) -> None:
    """All must be here with the right size."""
    good = blobs.put(DATA)
    blobs.require((good,))
    with pytest.raises(Rejected, match="not uploaded"):
        blobs.require((FileRef(digest=digest_of_bytes(b"other"), size_bytes=1),))
    with pytest.raises(Rejected, match="has 5000 bytes here"):
        blobs.require((FileRef(digest=DIGEST, size_bytes=1),))
