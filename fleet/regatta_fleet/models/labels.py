"""Reads a labels file: plain, one label a line, or indexed, `INDEX  LABEL` a line as Coral's come. Pure over text."""

from __future__ import annotations

import re

from regatta_protocol.errors import Rejected

__all__ = ["labels_text", "parse_labels"]

_INDEXED = re.compile(r"\s*(\d{1,6})(?:\s*[:,]\s*|\s+)(\S.*)")
_MAX_LABELS = 100_000  # the largest vocabularies of classifiers (ImageNet-21k, species) are below 22,000


def parse_labels(data: bytes, name: str) -> tuple[str, ...]:
    """Return the labels in the order of the model's classes.

    The file counts as indexed when every line begins with a number of its own and more text follows; an index that
    is left out gets the label `class INDEX`.

    Raises:
        Rejected: when it is no UTF-8 text, is empty, or has too many labels.
    """
    try:
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as err:
        raise Rejected(f"{name} is no UTF-8 text ({err}): save the labels as UTF-8, one a line") from err
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise Rejected(f"{name} holds no labels: write one a line")
    indexed = _indexed(lines)
    size = max(indexed) + 1 if indexed else len(lines)
    if size > _MAX_LABELS:
        raise Rejected(f"{name} speaks of {size} labels, over the limit of {_MAX_LABELS}: is it the right file?")
    if indexed:
        return tuple(indexed.get(index, f"class {index}") for index in range(size))
    return tuple(lines)


def labels_text(labels: tuple[str, ...]) -> bytes:
    """Return the labels as a bundle keeps them: UTF-8, one a line."""
    return "".join(f"{label}\n" for label in labels).encode()


def _indexed(lines: list[str]) -> dict[int, str]:
    """Return label by index, or nothing when the lines are plain labels."""
    found: dict[int, str] = {}
    for line in filter(None, lines):
        match = _INDEXED.fullmatch(line)
        if match is None or int(match[1]) in found:
            return {}
        found[int(match[1])] = match[2].strip()
    return found
