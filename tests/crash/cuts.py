"""Layer C: power cuts. After any call, with what was not synced lost, kept in part, or torn.

The story runs once; disk.py says what a cut after each of its calls may leave. Such a state is written out, the run
folder is empty as after a boot, and the agent is started on it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from crash.case import Case, KnownState
from crash.device import STATE
from crash.disk import Disk, Entries, Pending, Resize, Write
from crash.heard import Violation
from regatta_protocol.ids import digest_of_bytes

__all__ = ["Cuts"]

_SECTOR_BYTES = 512
Image = dict[str, bytes | None]
Keep = Callable[[int, Pending], Pending | None]


class Cuts:
    """A story's power cuts, by number: the call after which it comes x what it leaves."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._seen: set[str] = set()
        self._disk = self._fresh_disk()
        self._taken = 0
        assert case.recording is not None

    def __len__(self) -> int:
        return (len(self._case.recording.calls) + 1) * len(_WAYS)

    def hit(self, number: int) -> str | None:
        """Cut the power at the point and start again; return the broken promise, or None.

        Raises:
            KnownState: when there is nothing new to hit.
        """
        case = self._case
        after, way = divmod(number, len(_WAYS))
        disk = self._disk_after(after)
        keep = _WAYS[way](disk, Random(f"{case.seed} {number}"))
        if keep is None:
            raise KnownState
        image = disk.image(keep)
        told = sum(1 for moment in case.recording.moments if moment <= after)
        state = digest_of_bytes(repr((told, sorted(image.items()))).encode())
        if state in self._seen:
            raise KnownState
        self._seen.add(state)
        try:
            heard = case.heard(case.recording, after)
        except Violation as err:
            return str(err)
        _write_out(image, case.place)
        return case.come_back(heard, power_cut=True)

    def _fresh_disk(self) -> Disk:
        return Disk(self._case.place / STATE, self._case.only_state_given())

    def _disk_after(self, calls: int) -> Disk:
        """Return the disk after so many calls; points that come in order cost each call once."""
        if calls < self._taken:
            self._disk, self._taken = self._fresh_disk(), 0
        for call in self._case.recording.calls[self._taken : calls]:
            self._disk.take(call)
        self._taken = calls
        return self._disk


def _lost(_disk: Disk, _chance: Random) -> Keep | None:
    """Nothing that was not synced is there."""
    return lambda _index, _call: None


def _names_only(_disk: Disk, _chance: Random) -> Keep | None:
    """Every name is there, no content."""
    return lambda _index, call: call if isinstance(call, Entries) else None


def _names_and_lengths(disk: Disk, _chance: Random) -> Keep | None:
    """Every name and every length is there; what files grew by is zeros, as with delayed allocation."""

    def keep(_index: int, call: Pending) -> Pending | None:
        if not isinstance(call, Write):
            return call
        grown = call.offset + len(call.data) - max(call.offset, disk.durable_bytes(call.inode))
        return Write(call.inode, call.offset + len(call.data) - grown, bytes(grown)) if grown > 0 else None

    return keep


def _content_only(_disk: Disk, _chance: Random) -> Keep | None:
    """All content is there, no name."""
    return lambda _index, call: None if isinstance(call, Entries) else call


def _torn_at(cut: Callable[[int, Random], int]) -> Callable[[Disk, Random], Keep | None]:
    def torn(disk: Disk, chance: Random) -> Keep | None:
        """All is there but the end of the last write."""
        last = max((index for index, call in enumerate(disk.pending) if isinstance(call, Write)), default=None)
        if last is None:
            return None

        def keep(index: int, call: Pending) -> Pending | None:
            if index != last or not isinstance(call, Write):
                return call
            return Write(call.inode, call.offset, call.data[: cut(len(call.data), chance)])

        return keep

    return torn


def _sector(length: int, chance: Random) -> int:
    return _SECTOR_BYTES * chance.randint(0, (length - 1) // _SECTOR_BYTES)


def _middle(length: int, chance: Random) -> int:
    return chance.randrange(length)


def _some(disk: Disk, chance: Random) -> Keep | None:
    """Names up to one moment, and any of the content."""
    names = [index for index, call in enumerate(disk.pending) if isinstance(call, Entries)]
    until = chance.choice([-1, *names])

    kept = [
        index <= until if isinstance(call, Entries) else chance.random() < 0.5 or isinstance(call, Resize)
        for index, call in enumerate(disk.pending)
    ]
    return lambda index, call: call if kept[index] else None


_WAYS: tuple[Callable[[Disk, Random], Keep | None], ...] = (
    _lost, _names_only, _names_and_lengths, _content_only, _torn_at(_sector), _torn_at(_middle), _some, _some, _some,
)  # fmt: skip


def _write_out(image: Image, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    (place / "run").mkdir(parents=True)
    (place / STATE).mkdir()
    for name, content in sorted(image.items()):  # a folder before what is in it
        path = place / STATE / name
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
