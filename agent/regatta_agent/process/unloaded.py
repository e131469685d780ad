"""Stands in for modules that a library imports and this process never uses, so that they are not loaded.

The real module takes the place of its stand-in when something of it is used after all: nothing breaks, it is only
loaded later. importlib.util.LazyLoader does not serve here: `import x` and `from x import y` load its modules.
`leave_out` is for modules of which a library takes functions by name; their classes cannot be caught or inherited from.
`deferred` is for modules that are only imported, and looked into when they are needed; anything in them works.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType

__all__ = ["deferred", "leave_out"]


def leave_out(names: Iterable[str]) -> None:
    """Put a stand-in in place of each module that is not loaded yet; to be called before what would import it."""
    for name in names:
        if name not in sys.modules:
            parent, _, leaf = name.rpartition(".")
            sys.modules[name] = stand_in = _StandIn(name)
            setattr(importlib.import_module(parent), leaf, stand_in)


@contextmanager
def deferred(names: Iterable[str]) -> Iterator[None]:
    """Give what imports one of these modules meanwhile a stand-in, unless it is loaded already.

    The import system does not know of the stand-ins afterwards: who imports such a module then gets the real one.
    """
    stand_ins: dict[str, ModuleType] = {name: _Deferred(name) for name in names if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


class _StandIn(ModuleType):
    """Answers for every public name with a function that loads the real module and calls it there."""

    def __getattr__(self, attribute: str) -> Callable[..., object]:
        if attribute.startswith("_"):
            raise AttributeError(attribute)

        def call(*args: object, **kwargs: object) -> object:
            result: object = getattr(self._real(), attribute)(*args, **kwargs)
            return result

        return call

    def _real(self) -> ModuleType:
        name = self.__name__
        if sys.modules.get(name) is self:
            del sys.modules[name]
            parent, _, leaf = name.rpartition(".")
            setattr(sys.modules[parent], leaf, importlib.import_module(name))
        return sys.modules[name]


class _Deferred(ModuleType):
    """Answers for every name with what the real module has there."""

    def __getattr__(self, attribute: str) -> object:
        real: ModuleType | None = vars(self).get("_real")  # kept: asking the import system costs 2 us each time
        if real is None:
            if sys.modules.get(self.__name__) is self:  # looked into too early: it cannot be deferred
                del sys.modules[self.__name__]
            self._real = real = importlib.import_module(self.__name__)
        return getattr(real, attribute)
