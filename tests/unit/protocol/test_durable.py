"""Durable files: the old content or the new, never a mix, and synced in the right order."""

from __future__ import annotations

import errno
import os
import tracemalloc
from pathlib import Path

import pytest

from regatta_protocol.durable import (
    make_folder_durably,
    read_bounded,
    read_patiently,
    remove_durably,
    rename_durably,
    sync_folder,
    write_durably,
)
from regatta_protocol.errors import Rejected, StorageFull, TooLarge


def test_it_replaces_whole_and_leaves_nothing_beside(tmp_path: Path) -> None:
    """The new content stands alone in the folder, with the mode asked for."""
    path = tmp_path / "state"
    write_durably(path, b"old")
    write_durably(path, b"new", mode=0o640)

    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640 & ~_umask()
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_the_file_is_synced_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any other order loses content or name in a power cut."""
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        calls.append("folder" if Path(f"/proc/self/fd/{descriptor}").resolve() == tmp_path.resolve() else "file")
        fsync(descriptor)

    def note_replace(self: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_durably(tmp_path / "state", b"x")

    assert calls == ["file", "rename", "folder"]


@pytest.mark.parametrize("call", ["open", "write", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_failure_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """Whatever fails: the old content is whole, no temporary file stays, and a full disk is told apart."""
    path = tmp_path / "state"
    write_durably(path, b"old")

    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StorageFull if code in (errno.ENOSPC, errno.EDQUOT) else OSError) as caught:
            write_durably(path, b"new")

    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]
    if isinstance(caught.value, StorageFull):
        assert str(path) in str(caught.value) and "3 bytes" in str(caught.value)


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may take fewer bytes than were given."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    data = bytes(range(256))

    write_durably(tmp_path / "state", data)

    assert (tmp_path / "state").read_bytes() == data


def test_rename_and_remove(tmp_path: Path) -> None:
    """Between folders, over what was there; removing what is not there is no error."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"new")
    (tmp_path / "b" / "x").write_bytes(b"old")

    rename_durably(tmp_path / "a" / "x", tmp_path / "b" / "x")
    assert (tmp_path / "b" / "x").read_bytes() == b"new" and not (tmp_path / "a" / "x").exists()
    remove_durably(tmp_path / "b" / "x")
    remove_durably(tmp_path / "b" / "x")
    assert not (tmp_path / "b" / "x").exists()
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "none")


def test_reading_is_bounded(tmp_path: Path) -> None:
    """At the limit it passes; longer, a folder, a pipe and nothing are told apart, and none of them hangs."""
    path = tmp_path / "state"
    path.write_bytes(b"12345")
    os.mkfifo(tmp_path / "pipe")

    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(TooLarge, match="limit of 4 bytes"):
        read_bounded(path, 4)
    for other in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(Rejected, match="is not a file"):
            read_bounded(other, 5)
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "none", 5)


def test_reading_takes_room_for_the_file_and_not_for_the_limit(tmp_path: Path) -> None:
    """A short file under a long limit takes little; one that says 0 of itself, as those of /proc do, is read whole."""
    path = tmp_path / "state"
    path.write_bytes(b"12345")

    tracemalloc.start()
    try:
        assert read_bounded(path, 64 * 1024 * 1024) == b"12345"
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes < 100_000
    assert read_bounded(Path("/proc/self/maps"), 64 * 1024 * 1024).endswith(b"\n")
    with pytest.raises(TooLarge):
        read_bounded(Path("/proc/self/maps"), 100)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_new_folder_s_name_is_synced_into_each_one_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a cut loses what was synced inside; what is there already is not synced again."""
    synced: list[Path] = []
    monkeypatch.setattr("regatta_protocol.durable.sync_folder", synced.append)
    for _ in range(2):
        make_folder_durably(tmp_path / "a" / "b", mode=0o700)

    assert synced == [tmp_path, tmp_path / "a"]
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("errors", "read"), [(0, True), (2, True), (3, False)])
def test_an_error_of_the_disk_must_come_thrice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: int, read: bool
) -> None:
    """One may pass; want of descriptors and a file that is not there are told at once."""
    (tmp_path / "file").write_bytes(b"content")
    left = [OSError(errno.EIO, "broken")] * errors

    def failing(path: Path, limit_bytes: int) -> bytes:
        if left:
            raise left.pop()
        return read_bounded(path, limit_bytes)

    monkeypatch.setattr("regatta_protocol.durable.read_bounded", failing)
    if read:
        assert read_patiently(tmp_path / "file", 100) == b"content"
    else:
        with pytest.raises(OSError, match="broken"):
            read_patiently(tmp_path / "file", 100)
