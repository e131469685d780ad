"""Readers of values by the annotations of their types: strict, and without pydantic. plain.py uses them.

Nothing is guessed: text is no number, a number no text; only a whole float counts as an integer. An annotation may be
bool, int, float, str or Path, a NewType of those, a dataclass, Literal, `X | None`, a union of scalars, or of
dataclasses that a Literal field tells apart, `tuple[X, ...]`, `tuple[X, Y]`, `dict[str, X]`, `dict[int, X]`, and any of
it Annotated with Bounds. Numbers are finite. `__post_init__` may refuse more, by ValueError. Any other annotation is a
TypeError when the class is first read: a bug of ours. tests/unit/protocol/test_plain.py holds them against pydantic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Literal, NewType, Union, get_args, get_origin, get_type_hints

from regatta_protocol.bounds import Bounds, Strict

__all__ = ["Read", "Wrong", "reader_of"]

Read = Callable[[object], object]

_EXACT = 2.0**53  # whole floats from here on may have lost a unit


class Wrong(Exception):
    """A value that its annotation does not allow; `where` is grown by whoever holds it."""

    def __init__(self, text: str, where: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.where = where

    def inside(self, place: object) -> Wrong:
        """Return the same of what is at `place` in what holds it."""
        return Wrong(str(self), (str(place), *self.where))


@lru_cache(maxsize=512)  # a worker has a few dozen
def reader_of(hint: Hashable) -> Read:
    """Return what reads a value of the annotated type: it takes parsed JSON, and raises Wrong."""
    if isinstance(hint, type) and hint in _SCALARS:
        return _SCALARS[hint]
    if isinstance(hint, type) and is_dataclass(hint):
        return _dataclass_reader(hint)
    if isinstance(hint, NewType):
        return reader_of(hint.__supertype__)
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _bounded_reader(reader_of(inner[0]), [mark for mark in inner[1:] if isinstance(mark, Bounds)])
    if origin is Literal:
        return _literal_reader(inner)
    if origin in (Union, UnionType):
        return _union_reader(inner)
    if origin is tuple:
        return _tuple_reader(inner)
    if origin is dict:
        return _dict_reader(*inner)
    raise TypeError(f"there is no reading of {hint!r}")


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise Wrong("should be true or false")
    return value


def _int(value: object) -> int:
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise Wrong("should be a whole number")
    return value


def _float(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Wrong("should be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise Wrong("should be a finite number")
    return number


def _str(value: object) -> str:
    if not isinstance(value, str):
        raise Wrong("should be text")
    return value


def _path(value: object) -> Path:
    return Path(_str(value))


_SCALARS: dict[type, Read] = {bool: _bool, int: _int, float: _float, str: _str, Path: _path}


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise Wrong("should be an object")
    return value


def _array(value: object) -> list[object] | tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise Wrong("should be an array")
    return value


def _at(place: object, read_it: Read, value: object) -> object:
    try:
        return read_it(value)
    except Wrong as err:
        raise err.inside(place) from err


def _bounded_reader(inner: Read, bounds: list[Bounds]) -> Read:
    def bounded(value: object) -> object:
        found = inner(value)
        for bound in bounds:
            if (broken := bound.broken_by(found)) is not None:
                raise Wrong(broken)
        return found

    return bounded


def _literal_reader(values: tuple[object, ...]) -> Read:
    def literal(value: object) -> object:
        for known in values:
            if known == value and type(known) is type(value):
                return known
        raise Wrong(f"should be {' or '.join(map(repr, values))}")

    return literal


def _union_reader(kinds: tuple[object, ...]) -> Read:
    """Return the reader of `X | None`, of scalars, or of dataclasses that a Literal field tells apart."""
    others = [kind for kind in kinds if kind is not type(None)]
    if all(isinstance(kind, type) and is_dataclass(kind) for kind in others) and len(others) > 1:
        chosen = _tagged_reader([kind for kind in others if isinstance(kind, type)])
    elif len(others) == 1:
        chosen = reader_of(others[0])
    else:
        chosen = _first_reader([reader_of(kind) for kind in others])
    if len(others) == len(kinds):
        return chosen
    return lambda value: None if value is None else chosen(value)


def _first_reader(readers: list[Read]) -> Read:
    def first(value: object) -> object:
        wrongs: list[str] = []
        for one in readers:
            try:
                return one(value)
            except Wrong as err:
                wrongs.append(str(err))
        raise Wrong(", or ".join(wrongs))

    return first


def _tagged_reader(kinds: list[type]) -> Read:
    tag = next(name for name in _tags_of(kinds[0]) if all(name in _tags_of(kind) for kind in kinds))
    known = {_tags_of(kind)[tag]: kind for kind in kinds}

    def tagged(value: object) -> object:
        named = _object(value).get(tag)
        kind = known.get(named) if isinstance(named, str) else None
        if kind is None:
            raise Wrong(f"should be {' or '.join(map(repr, known))}").inside(tag)
        return reader_of(kind)(value)

    return tagged


def _tags_of(kind: type) -> dict[str, object]:
    """Return the fields that can have but one value."""
    hints = get_type_hints(kind)
    literals = {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
    return {name: values[0] for name, values in literals.items() if len(values) == 1}


def _tuple_reader(inner: tuple[object, ...]) -> Read:
    if inner[-1] is Ellipsis:
        each = reader_of(inner[0])
        return lambda value: tuple([_at(place, each, held) for place, held in enumerate(_array(value))])
    every = [reader_of(kind) for kind in inner]

    def exactly(value: object) -> object:
        held = _array(value)
        if len(held) != len(every):
            raise Wrong(f"should be an array of {len(every)}")
        return tuple(_at(place, one, item) for place, (one, item) in enumerate(zip(every, held, strict=True)))

    return exactly


def _dict_reader(key: object, inner: object) -> Read:
    each = reader_of(inner)
    name_of = _whole_number if key is int else reader_of(key)
    return lambda value: {_at(name, name_of, name): _at(name, each, held) for name, held in _object(value).items()}


def _whole_number(value: object) -> int:
    text = _str(value)
    if not text.removeprefix("-").isdecimal() or not text.isascii():
        raise Wrong("should be named by a whole number")
    return int(text)


def _dataclass_reader(kind: type) -> Read:
    hints = get_type_hints(kind, include_extras=True)
    known = {one.name: reader_of(hints[one.name]) for one in fields(kind)}
    needed = [one.name for one in fields(kind) if _is_needed(one)]
    refuses = issubclass(kind, Strict)

    def dataclass(value: object) -> object:
        given = _object(value)
        if refuses and (unknown := next((name for name in given if name not in known), None)) is not None:
            raise Wrong(f"there is no such key; the keys are {', '.join(sorted(known))}").inside(unknown)
        for name in needed:
            if name not in given:
                raise Wrong("is required").inside(name)
        held = {name: _at(name, known[name], one) for name, one in given.items() if name in known}
        try:
            made: object = kind(**held)
        except ValueError as err:
            raise Wrong(str(err)) from err
        return made

    return dataclass


def _is_needed(one: Field[object]) -> bool:
    return one.default is MISSING and one.default_factory is MISSING
