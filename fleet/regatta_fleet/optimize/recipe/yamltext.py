"""Reads YAML into plain values and remembers on which line each key stands, so that an error can say where.

PyYAML's safe scalars (YAML 1.1). Not taken: aliases (a few lines of them grow without end), tags, keys that are not
text, a key given twice, several documents. Bounded: 64 KiB, 32 levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Rejected

__all__ = ["Place", "YamlText", "read_yaml"]

_MAX_BYTES = 64 * 1024
_MAX_DEPTH = 32
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class YamlText:
    """The plain values of a document, and the line (from 1) of each key and item by its place."""

    name: str
    value: object
    lines: dict[Place, int]

    def where(self, place: Place) -> str:
        """Return file and line of the place, or of the nearest one around it."""
        while place and place not in self.lines:
            place = place[:-1]
        return f"{self.name}, line {self.lines.get(place, 1)}"


def read_yaml(path: Path) -> YamlText:
    """Return the document in the file.

    Raises:
        Rejected: when it is no YAML that is taken here; the text names the line.
        TooLarge: when it is over 64 KiB.
        OSError: when it cannot be read.
    """
    try:
        text = read_bounded(path, _MAX_BYTES).decode("utf-8")
        _refuse_aliases(text, path.name)
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            lines: dict[Place, int] = {}
            value = None if node is None else _value(loader, node, (), lines, path.name)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as err:
        line = 1 if err.problem_mark is None else err.problem_mark.line + 1
        words = " ".join(part for part in (err.context, err.problem) if part)
        raise Rejected(f"{path.name}, line {line}: no YAML: {words}") from err
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as err:
        raise Rejected(f"{path.name} is no YAML text: {' '.join(str(err).split())[:200]}") from err
    except RecursionError as err:
        raise Rejected(f"{path.name} is nested too deep: give at most {_MAX_DEPTH} levels") from err
    return YamlText(path.name, value, lines)


def _refuse_aliases(text: str, name: str) -> None:
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.AliasToken | yaml.TagToken):
            line = token.start_mark.line + 1
            raise Rejected(f"{name}, line {line}: aliases (*name) and tags (!name) are not taken: write the value out")


def _value(loader: yaml.SafeLoader, node: yaml.Node, place: Place, lines: dict[Place, int], name: str) -> object:
    line = node.start_mark.line + 1
    lines.setdefault(place, line)
    if len(place) > _MAX_DEPTH:
        raise Rejected(f"{name}, line {line}: nested deeper than {_MAX_DEPTH} levels")
    if isinstance(node, yaml.MappingNode):
        found: dict[str, object] = {}
        for key_node, value_node in node.value:
            key, key_line = key_node.value, key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise Rejected(f"{name}, line {key_line}: a key must be plain text")
            if key in found:
                raise Rejected(f"{name}, line {key_line}: key {key!r} is given twice")
            inside = (*place, key)
            lines[inside] = key_line
            found[key] = _value(loader, value_node, inside, lines, name)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, (*place, at), lines, name) for at, item in enumerate(node.value)]
    return loader.construct_object(node)
