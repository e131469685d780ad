"""Files of models: verified before they are believed, collected when nobody needs them, resumed after a cut."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path
from random import Random
from unittest import mock

import pytest

from regatta_agent.core.installs import AgentRecord
from regatta_agent.disk.partial import PartialFile
from regatta_agent.disk.record import UNSAVED_REPORTS, RecordFile
from regatta_agent.disk.store import Collected, Store
from regatta_agent.errors import WrongBlob
from regatta_protocol.codec import encode
from regatta_protocol.errors import BadDigest, Exhausted, Rejected
from regatta_protocol.ids import ModelName, ModelRef, digest_of_bytes
from regatta_protocol.manifest import FileRef, Manifest, Variant
from regatta_protocol.values import TensorSpec

DATA = Random(1).randbytes(5 * 1024 + 7)
FILE = FileRef(digest=digest_of_bytes(DATA), size_bytes=len(DATA))
CHUNK = 1024


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path)
    made.prepare()
    return made


def manifest(version: int = 1) -> Manifest:
    tensor = TensorSpec(name="x", dtype="int8", shape=(1,))
    variant = Variant(name="int8", file=FILE, precision="int8", inputs=(tensor,), outputs=(tensor,))
    return Manifest(name=ModelName("m"), version=version, created_at="now", variants=(variant,), golden=FILE)


def partial(store: Store, chunk_bytes: int = CHUNK) -> PartialFile:
    made = PartialFile(store.partial, store.blobs, FILE, chunk_bytes, store.digests)
    made.open()
    return made


def piece(index: int) -> bytes:
    return DATA[index * CHUNK : (index + 1) * CHUNK]


def test_a_download_in_any_order_becomes_a_blob(store: Store) -> None:
    """Chunks may come twice and in any order."""
    file = partial(store)
    for index in [5, 0, 3, 3, 1, 4, 2]:
        file.write(index, piece(index))
    file.finish()

    assert store.blob_path(FILE.digest).read_bytes() == DATA
    assert list(store.partial.iterdir()) == []
    assert store.has(FILE)


def test_only_what_was_synced_is_believed_after_a_cut(store: Store) -> None:
    """Bits are written after content."""
    file = partial(store)
    file.write(0, piece(0))
    file.sync()
    file.write(1, piece(1))
    file.close()

    again = partial(store)
    assert again.missing() == [1, 2, 3, 4, 5]
    assert again.bitmap() == b"\x01"


@pytest.mark.parametrize(
    ("boot", "missing"), [(b"a" * 16, [2, 3, 4, 5]), (b"b" * 16, [1, 2, 3, 4, 5]), (None, [1, 2, 3, 4, 5])]
)
def test_what_was_written_is_there_after_a_kill_and_not_after_a_power_cut(
    store: Store, monkeypatch: pytest.MonkeyPatch, boot: bytes | None, missing: list[int]
) -> None:
    """As long as the same kernel runs it holds what was not synced; under another, or an unknown one, nobody knows."""
    monkeypatch.setattr("regatta_agent.disk.partial._LEAST_SYNC_BYTES", 4 * CHUNK)
    killed = PartialFile(store.partial, store.blobs, FILE, CHUNK, store.digests, b"a" * 16)
    killed.open()
    killed.write(0, piece(0))
    killed.sync()
    killed.write(1, piece(1))  # and no more: nothing is synced or closed

    again = PartialFile(store.partial, store.blobs, FILE, CHUNK, store.digests, boot)
    again.open()
    assert again.missing() == missing
    for index in missing:
        again.write(index, piece(index))
    with mock.patch("os.fsync") as sync:
        assert again.finish()
    assert sync.call_count >= 2, "the content is synced before its rename, and the folder after"
    assert store.blob_path(FILE.digest).read_bytes() == DATA
    assert list(store.partial.iterdir()) == []


def test_bits_of_a_file_that_is_cut_short_are_gone_at_once(store: Store) -> None:
    """A kill before the next sync leaves no word of chunks that are not there."""
    file = partial(store)
    file.write(0, piece(0))
    file.sync()
    file.close()
    (store.partial / FILE.digest).write_bytes(b"")

    assert partial(store).missing() == partial(store).missing() == [0, 1, 2, 3, 4, 5]


def test_another_chunk_size_begins_anew(store: Store) -> None:
    """Bits of other chunks say nothing."""
    file = partial(store)
    file.write(0, piece(0))
    file.sync()
    file.close()

    assert partial(store, 2048).missing() == [0, 1, 2]


@pytest.mark.parametrize("bits", [b"", b"xx", b"\x00" * 999])
def test_damaged_bits_begin_anew(store: Store, bits: bytes) -> None:
    """A torn bitmap costs a download, never a wrong file."""
    file = partial(store)
    file.write(0, piece(0))
    file.sync()
    file.close()
    (store.partial / f"{FILE.digest}.bits").write_bytes(bits)

    assert partial(store).missing() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("index", "payload"), [(-1, b""), (6, b"x"), (0, b"short"), (5, piece(0))])
def test_chunks_that_do_not_fit_are_refused(store: Store, index: int, payload: bytes) -> None:
    """Neither place nor length is taken on trust."""
    file = partial(store)

    assert file.write(index, payload) is False


def test_a_wrong_whole_leaves_nothing_behind(store: Store) -> None:
    """The digest of the whole is the judge."""
    file = partial(store)
    for index in range(6):
        file.write(index, bytes(len(piece(index))))

    with pytest.raises(WrongBlob, match="arrived with digest"):
        file.finish()
    assert list(store.partial.iterdir()) == []
    assert list(store.blobs.iterdir()) == []


def test_a_manifest_with_another_digest_or_name_is_refused(store: Store) -> None:
    """What was signed is what is stored."""
    data = encode(manifest())
    ref = ModelRef(ModelName("m"), 1)

    with pytest.raises(BadDigest):
        store.put_manifest(ref, data, digest_of_bytes(b"other"))
    with pytest.raises(Rejected, match="is of m:1"):
        store.put_manifest(ModelRef(ModelName("m"), 2), data, digest_of_bytes(data))
    assert store.manifest(ref) is None


def test_collect_keeps_what_is_needed_and_frees_the_rest(store: Store) -> None:
    """Shared files stay while one version needs them."""
    for version in (1, 2):
        data = encode(manifest(version))
        store.put_manifest(ModelRef(ModelName("m"), version), data, digest_of_bytes(data))
    store.blob_path(FILE.digest).write_bytes(DATA)
    (store.blobs / ("0" * 64)).write_bytes(b"old")

    store.collect({ModelRef(ModelName("m"), 2)})
    assert store.has(FILE)
    assert store.manifest(ModelRef(ModelName("m"), 1)) is None
    assert store.collect(set()).freed_bytes > len(DATA)
    assert list(store.blobs.iterdir()) == []


def test_what_a_kill_leaves_between_two_steps_is_cleared_at_the_next_start(store: Store, tmp_path: Path) -> None:
    """Temporary files beside the record, and the bits of a file that is in its place already."""
    file = partial(store)
    file.write(0, piece(0))
    file.sync()
    file.close()
    record = tmp_path / ".record.json.4242.tmp"
    orphan = store.partial / f"{digest_of_bytes(b'moved')}.bits"
    for leftover in (record, orphan):
        leftover.write_bytes(b"half")
    store.prepare()

    assert not record.exists()
    assert {path.name for path in store.partial.iterdir()} == {FILE.digest, f"{FILE.digest}.bits"}


def test_folders_that_a_full_disk_has_no_room_for_are_made_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent starts, sees what is free, collects nothing, and makes them once there is room."""
    made = Store(tmp_path)

    def full(path: Path, mode: int = 0o777) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("regatta_agent.disk.store.make_folder_durably", full)
        made.prepare()
        with pytest.raises(OSError, match="No space"):
            made.make_folders()
    assert not made.blobs.exists()
    assert made.free_bytes() > 0
    assert made.collect([]) == Collected(0, True)

    made.make_folders()
    file = partial(made)
    for index in range(6):
        file.write(index, piece(index))
    assert file.finish()
    assert made.blob_path(FILE.digest).read_bytes() == DATA


def test_folders_that_cannot_be_made_for_another_reason_end_the_start(tmp_path: Path) -> None:
    """Such as a file where a folder belongs: that is for a person to mend."""
    (tmp_path / "blobs").write_bytes(b"no folder")
    with pytest.raises(FileExistsError):
        Store(tmp_path).prepare()


@pytest.mark.parametrize("unreadable", [OSError(errno.EIO, "broken"), OSError(errno.EMFILE, "no descriptor")])
def test_files_of_a_version_whose_manifest_cannot_be_read_are_not_collected(
    store: Store, monkeypatch: pytest.MonkeyPatch, unreadable: OSError
) -> None:
    """Nobody knows then which they are: a lack of descriptors must not cost the running model."""
    file = partial(store)
    for index in range(6):
        file.write(index, piece(index))
    file.finish()
    data = encode(manifest())
    store.put_manifest(ModelRef(ModelName("m"), 1), data, digest_of_bytes(data))
    monkeypatch.setattr("regatta_agent.disk.store.read_patiently", mock.Mock(side_effect=unreadable))
    with suppress(Exhausted):
        store.collect([ModelRef(ModelName("m"), 1)])

    assert store.has(FILE)


def test_what_is_left_of_a_finished_download_is_cleared(store: Store) -> None:
    """Its old name may come back with a power cut, its bits stay when they could not be removed."""
    store.blob_path(FILE.digest).write_bytes(DATA)
    for name in (FILE.digest, f"{FILE.digest}.bits"):
        (store.partial / name).write_bytes(b"old")
    store.prepare()

    assert list(store.partial.iterdir()) == []


def test_the_copy_before_does_not_report_under_a_number_used_since(tmp_path: Path) -> None:
    """A save raises it by a start's step and the unsaved reports at most."""
    records = RecordFile(tmp_path)
    records.save(AgentRecord(report_sequence=7))
    records.save(AgentRecord(report_sequence=7 + 2 * UNSAVED_REPORTS))
    (tmp_path / "record.json").write_bytes(b"{")

    assert records.load().report_sequence >= 7 + 2 * UNSAVED_REPORTS


def test_a_record_that_cannot_be_opened_for_want_of_descriptors_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start fails and is tried again: the copy before would be older for nothing."""
    records = RecordFile(tmp_path)
    for sequence in (1, 2):
        records.save(AgentRecord(report_sequence=sequence))
    monkeypatch.setattr(
        "regatta_agent.disk.record.read_patiently", mock.Mock(side_effect=OSError(errno.EMFILE, "none"))
    )
    with pytest.raises(Exhausted):
        records.load()
