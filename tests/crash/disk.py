"""A disk as a power cut may leave it: which of the recorded calls have reached it for sure, and which may have.

The model is the strict reading of POSIX that ALICE (Pillai et al., OSDI 2014) and CrashMonkey (Mohan et al., OSDI 2018)
test against, weaker than any one file system:

- fsync of a file makes its content durable, and nothing else; fsync of a folder makes its entries durable
- what was not synced may be there or not, each call by itself; a write may be there in part
- one call is atomic for the entries of one folder: a rename inside it is there whole or not at all. Between two
  folders each half is for itself
- calls that change entries become durable in the order they were made, as every journal has it

Not modelled: mapped memory (SQLite's -shm file, which no reader trusts after a cut), and a disk that lies about fsync.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from crash.shim import Call, Intent, Kind

__all__ = ["Disk", "Entries", "Pending", "Resize", "Write"]


@dataclass(frozen=True)
class Write:
    """Content that may be lost."""

    inode: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Resize:
    """A length that may be lost."""

    inode: int
    length: int


@dataclass(frozen=True)
class Entries:
    """Names of one folder that may be lost; None takes a name away."""

    folder: int
    names: tuple[tuple[str, int | None], ...]


Pending = Write | Resize | Entries
Keep = Callable[[int, Pending], Pending | None]  # what is there of the n-th pending call; None: nothing


@dataclass
class _Node:
    """A file or a folder, as it is durable."""

    content: bytearray | None  # None: a folder
    entries: dict[str, int] = field(default_factory=dict)


class Disk:
    """The folder `root`, as recorded calls change it, from its state in `given`."""

    def __init__(self, root: Path, given: Path) -> None:
        self._root = PurePath(root)
        self._nodes: list[_Node] = []
        self._now: list[dict[str, int]] = []  # the entries of each node as the process sees them
        self._files: dict[int, int] = {}  # descriptor -> node
        self.pending: list[Pending] = []
        self._load(given)

    def take(self, call: Call) -> None:
        """Let one recorded call happen."""
        if call.failed:
            return
        if call.kind is Kind.OPEN:
            self._open(call)
        elif call.kind in (Kind.WRITE, Kind.PWRITE, Kind.FTRUNCATE, Kind.FSYNC, Kind.FDATASYNC):
            self._on_file(call)
        elif call.kind is Kind.MKDIR:
            self._enter(call.path, lambda: self._new(None))
        elif call.kind in (Kind.UNLINK, Kind.RMDIR):
            self._enter(call.path, lambda: None)
        elif call.kind is Kind.LINK:
            node = self._find(call.path)
            self._enter(call.other, lambda: node)
        elif call.kind is Kind.RENAME:
            self._rename(call.path, call.other)

    def image(self, keep: Keep) -> dict[str, bytes | None]:
        """Return the tree after a cut now: path below the root -> content, or None for a folder."""
        contents = {index: node.content for index, node in enumerate(self._nodes) if node.content is not None}
        entries = {index: node.entries for index, node in enumerate(self._nodes) if node.content is None}
        for index, call in enumerate(self.pending):
            kept = keep(index, call)
            if isinstance(kept, Entries):
                entries[kept.folder] = _renamed(entries[kept.folder], kept)
            elif kept is not None:
                contents[kept.inode] = _changed(contents[kept.inode], kept)
        tree: dict[str, bytes | None] = {}
        folders = [("", 0)]
        while folders:
            path, index = folders.pop()
            for name, node in entries[index].items():
                below = f"{path}{name}"
                if node in contents:
                    tree[below] = bytes(contents[node])
                else:
                    tree[below] = None
                    folders.append((f"{below}/", node))
        return tree

    def durable_bytes(self, inode: int) -> int:
        """Return how long the file is for sure."""
        return len(self._nodes[inode].content or b"")

    def _load(self, folder: Path) -> int:
        index = self._new(None)
        for path in sorted(folder.iterdir()):
            node = self._load(path) if path.is_dir() else self._new(bytearray(path.read_bytes()))
            self._nodes[index].entries[path.name] = self._now[index][path.name] = node
        return index

    def _new(self, content: bytearray | None) -> int:
        self._nodes.append(_Node(content))
        self._now.append({})
        return len(self._nodes) - 1

    def _find(self, path: str) -> int | None:
        """Return the node at the path, or None when it is not of this disk."""
        below = PurePath(path)
        if self._root != below and self._root not in below.parents:
            return None
        index = 0
        for name in below.relative_to(self._root).parts:
            index = self._now[index][name]
        return index

    def _open(self, call: Call) -> None:
        below = PurePath(call.path)
        if self._root != below and self._root not in below.parents:
            self._files.pop(call.result, None)
            return
        folder = self._find(str(below.parent)) if below != self._root else None
        if folder is not None and below.name not in self._now[folder]:
            self._enter(call.path, lambda: self._new(bytearray()))
        node = self._find(call.path)
        assert node is not None
        self._files[call.result] = node
        if call.intent is Intent.CREATES and call.size:  # emptied
            self.pending.append(Resize(node, 0))

    def _on_file(self, call: Call) -> None:
        node = self._files.get(call.file)
        if node is None:
            return
        if call.kind is Kind.FTRUNCATE:
            self.pending.append(Resize(node, call.offset))
        elif call.kind in (Kind.WRITE, Kind.PWRITE):
            self.pending.append(Write(node, call.offset, call.data))
        else:
            self._sync(node)

    def _sync(self, node: int) -> None:
        left: list[Pending] = []
        durable = self._nodes[node]
        for call in self.pending:
            if isinstance(call, Entries):
                if call.folder == node:
                    durable.entries = _renamed(durable.entries, call)
                    continue
            elif call.inode == node and durable.content is not None:
                durable.content = _changed(durable.content, call)
                continue
            left.append(call)
        self.pending = left

    def _enter(self, path: str, node_of: Callable[[], int | None]) -> None:
        """Change one entry."""
        below = PurePath(path)
        folder = self._find(str(below.parent)) if self._root in below.parents else None
        if folder is not None:
            self._change(folder, ((below.name, node_of()),))

    def _rename(self, source: str, destination: str) -> None:
        old, new = PurePath(source), PurePath(destination)
        if self._root not in new.parents:
            return
        node, origin, target = self._find(source), self._find(str(old.parent)), self._find(str(new.parent))
        assert node is not None and origin is not None and target is not None
        if origin == target:
            self._change(origin, ((old.name, None), (new.name, node)))
        else:
            self._change(target, ((new.name, node),))
            self._change(origin, ((old.name, None),))

    def _change(self, folder: int, names: tuple[tuple[str, int | None], ...]) -> None:
        call = Entries(folder, names)
        self._now[folder] = _renamed(self._now[folder], call)
        self.pending.append(call)


def _renamed(entries: dict[str, int], call: Entries) -> dict[str, int]:
    changed = dict(entries)
    for name, node in call.names:
        changed.pop(name, None)
        if node is not None:
            changed[name] = node
    return changed


def _changed(content: bytearray, call: Write | Resize) -> bytearray:
    changed = bytearray(content)
    if isinstance(call, Resize):
        return changed[: call.length] + bytes(max(0, call.length - len(changed)))
    changed += bytes(max(0, call.offset - len(changed)))
    changed[call.offset : call.offset + len(call.data)] = call.data
    return changed
