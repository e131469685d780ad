"""Stands in for modules that a library imports and this process never uses, so that they are not loaded.

The real module takes the place of its stand-in when one of its functions is called after all: nothing breaks, it is
only loaded later. importlib.util.LazyLoader does not serve here: `import x` and `from x import y` load its modules.
Only for modules whose functions are called; their classes cannot be caught or inherited from.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from types import ModuleType

__all__ = ["leave_out"]


def leave_out(names: Iterable[str]) -> None:
    """Put a stand-in in place of each module that is not loaded yet; to be called before what would import it."""
    for name in names:
        if name not in sys.modules:
            parent, _, leaf = name.rpartition(".")
            sys.modules[name] = stand_in = _StandIn(name)
            setattr(importlib.import_module(parent), leaf, stand_in)


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
