"""Lays out a recorded board (tests/boards/*.tree, the format of record.py) as files below a folder.

A contributed file is only read: a path that leads out of the folder is refused.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

__all__ = ["BOARDS", "lay_out", "tree_text"]

_FOLDER = Path(__file__).parent / "boards"
BOARDS = tuple(sorted(path.stem for path in _FOLDER.glob("*.tree")))
_LINE = re.compile(r"(?P<path>\S+?)(?P<rest>/| = .*| -> \S+| \[\d+ bytes\]| \[node\]|:)")


def tree_text(board: str) -> str:
    """Return a recorded board's text."""
    return (_FOLDER / f"{board}.tree").read_text(encoding="utf-8")


def lay_out(text: str, root: Path) -> Path:
    """Write the tree below `root`, and return that."""
    blocks: dict[Path, list[str]] = {}
    lines: list[str] | None = None
    for line in text.splitlines():
        if line.startswith("    ") and lines is not None:
            lines.append(line[4:])
        elif line and not line.startswith("#"):
            match = _LINE.fullmatch(line)
            assert match is not None, f"not a line of a tree: {line!r}"
            path, lines = _inside(root, match["path"]), None
            path.parent.mkdir(parents=True, exist_ok=True)
            if match["rest"] == ":":
                lines = blocks.setdefault(path, [])
            else:
                _write(path, match["rest"])
    for path, block in blocks.items():
        path.write_text("\n".join([*block, ""]), encoding="utf-8")
    return root


def _inside(root: Path, name: str) -> Path:
    assert not name.startswith("/") and ".." not in name.split("/"), f"{name!r} leads out of the tree"
    return root / name


def _write(path: Path, rest: str) -> None:
    if rest == "/":
        path.mkdir(exist_ok=True)
    elif rest.startswith(" = "):
        path.write_text(json.loads(rest[3:]) + "\n", encoding="utf-8")
    elif rest.startswith(" -> "):
        target = rest[4:]
        assert re.fullmatch(r"[\w.-]+", target), f"{target!r} leads out of the tree"
        path.symlink_to(target)
    else:
        path.touch()
        if match := re.fullmatch(r" \[(\d{1,10}) bytes\]", rest):
            with path.open("wb") as file:
                file.truncate(int(match[1]))  # sparse
