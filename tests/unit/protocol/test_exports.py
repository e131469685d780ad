"""The public surface of the protocol: `__all__` is true, sorted, and holds all that has a public name."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import pytest

import regatta_protocol

MODULES = sorted(info.name for info in pkgutil.iter_modules(regatta_protocol.__path__))


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(f"regatta_protocol.{request.param}")


def test_every_export_exists_and_every_definition_is_exported(module: ModuleType) -> None:
    """What is defined here without an underscore is public on purpose."""
    exported = set(module.__all__)
    defined = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }

    assert all(hasattr(module, name) for name in exported)
    assert defined - exported <= {"logger", "M"}
    assert len(module.__all__) == len(exported)


def test_every_module_says_what_it_is_for(module: ModuleType) -> None:
    """A docstring that begins with a sentence."""
    assert module.__doc__ is not None and len(module.__doc__.split()) >= 8
