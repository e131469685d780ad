"""The lab's model of a disk: what a power cut may leave, and what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash.disk import Disk, Entries, Pending, Write
from crash.shim import Call, Intent, Kind

ROOT = Path("/d")


def call(kind: Kind, path: str = "", other: str = "", *, file: int = -1, result: int = 0, data: bytes = b"") -> Call:
    intent = Intent.CREATES if kind is Kind.OPEN else Intent.LOOKS
    where = f"{ROOT}/{path}" if path else str(ROOT) if kind is Kind.OPEN else ""
    return Call(kind, intent, where, f"{ROOT}/{other}" if other else "", result, file, 0, 0, data)


NEW = [call(Kind.OPEN, "new", result=3), call(Kind.WRITE, file=3, data=b"content")]
SYNC = [call(Kind.FSYNC, file=3)]
RENAME = [call(Kind.RENAME, "new", "old")]
SYNC_FOLDER = [call(Kind.OPEN, result=4), call(Kind.FSYNC, file=4)]


def disk_after(folder: Path, *calls: Call) -> Disk:
    (folder / "old").write_bytes(b"before")
    disk = Disk(ROOT, folder)
    for one in calls:
        disk.take(one)
    return disk


def nothing(_index: int, _call: Pending) -> Pending | None:
    return None


def everything(_index: int, one: Pending) -> Pending | None:
    return one


def names(_index: int, one: Pending) -> Pending | None:
    return one if isinstance(one, Entries) else None


@pytest.mark.parametrize(
    ("calls", "lost", "only_names", "kept"),
    [
        (NEW, {"old": b"before"}, {"old": b"before", "new": b""}, {"old": b"before", "new": b"content"}),
        ([*NEW, *RENAME], {"old": b"before"}, {"old": b""}, {"old": b"content"}),
        ([*NEW, *SYNC, *RENAME], {"old": b"before"}, {"old": b"content"}, {"old": b"content"}),
        ([*NEW, *RENAME, *SYNC_FOLDER], {"old": b""}, {"old": b""}, {"old": b"content"}),
        ([*NEW, *SYNC, *RENAME, *SYNC_FOLDER], {"old": b"content"}, {"old": b"content"}, {"old": b"content"}),
        ([call(Kind.UNLINK, "old")], {"old": b"before"}, {}, {}),
        ([call(Kind.LINK, "old", "second")], {"old": b"before"}, *[{"old": b"before", "second": b"before"}] * 2),
        ([call(Kind.MKDIR, "folder"), *SYNC_FOLDER], *[{"old": b"before", "folder": None}] * 3),
    ],
)
def test_only_what_was_synced_is_sure_to_stay(
    tmp_path: Path, calls: list[Call], lost: object, only_names: object, kept: object
) -> None:
    """Content with the file, names with the folder; the classic of a rename without a sync leaves an empty file."""
    disk = disk_after(tmp_path, *calls)

    assert [disk.image(keep) for keep in (nothing, names, everything)] == [lost, only_names, kept]


def test_a_file_in_a_folder_whose_name_was_not_synced_is_lost_with_it(tmp_path: Path) -> None:
    """Though its own folder was synced."""
    inside = [call(Kind.MKDIR, "folder"), call(Kind.OPEN, "folder/file", result=3), *SYNC]
    disk = disk_after(tmp_path, *inside, call(Kind.OPEN, "folder", result=4), call(Kind.FSYNC, file=4))

    assert disk.image(nothing) == {"old": b"before"}
    assert disk.image(everything) == {"old": b"before", "folder": None, "folder/file": b""}


def test_a_write_may_be_there_in_part(tmp_path: Path) -> None:
    """Whoever asks for the image says in which."""
    disk = disk_after(tmp_path, *NEW)

    def half(_index: int, one: Pending) -> Pending | None:
        return Write(one.inode, one.offset, one.data[:3]) if isinstance(one, Write) else one

    assert disk.image(half) == {"old": b"before", "new": b"con"}
