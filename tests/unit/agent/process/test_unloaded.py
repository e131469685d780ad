"""Modules that are kept out until something of them is used: `deferred`, over packages that the test writes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from regatta_agent.process.unloaded import deferred


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that imports two of its parts, as numpy does, only to offer them by name."""
    name = "shop_of_test_unloaded"
    (tmp_path / name / "cellar").mkdir(parents=True)
    (tmp_path / name / "__init__.py").write_text("from . import attic\nfrom . import cellar\n")
    (tmp_path / name / "attic.py").write_text("class Box: ...\nclass Lost(Exception): ...\n")
    (tmp_path / name / "cellar" / "__init__.py").write_text("from .wine import *\nfrom . import wine\n")
    (tmp_path / name / "cellar" / "wine.py").write_text("__all__ = ['bottle']\nbottle = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for loaded in [one for one in sys.modules if one.split(".")[0] == name]:
        del sys.modules[loaded]


def _loaded(shop: str) -> set[str]:
    return {name.removeprefix(shop).lstrip(".") for name in sys.modules if name.startswith(shop)} - {""}


def test_what_is_deferred_is_loaded_when_it_is_looked_into(shop: str) -> None:
    """It is the real module then, whose classes can be caught and inherited from."""
    with deferred([f"{shop}.attic", f"{shop}.cellar"]):
        package = importlib.import_module(shop)
    assert _loaded(shop) == set()

    box = type("Crate", (package.attic.Box,), {})()
    with pytest.raises(package.attic.Lost):
        raise importlib.import_module(f"{shop}.attic").Lost
    assert isinstance(box, importlib.import_module(f"{shop}.attic").Box)
    assert _loaded(shop) == {"attic"}
    assert package.attic is sys.modules[f"{shop}.attic"]


def test_parts_of_what_is_deferred_are_imported_as_ever(shop: str) -> None:
    """The import system does not meet the stand-in: a package comes before its parts, once."""
    with deferred([f"{shop}.cellar"]):
        package = importlib.import_module(shop)
    stand_in = package.cellar
    wine = importlib.import_module(f"{shop}.cellar.wine")

    assert package.cellar.wine is wine
    assert package.cellar.bottle == stand_in.bottle == 7
    with pytest.raises(AttributeError, match="vinegar"):
        _ = stand_in.vinegar


def test_what_is_loaded_or_needed_at_once_is_not_deferred(shop: str) -> None:
    """A stand-in takes no loaded module's place, and gives way to who takes something out of it while importing."""
    attic = importlib.import_module(f"{shop}.attic")
    with deferred([f"{shop}.attic", f"{shop}.cellar"]):
        assert importlib.import_module(f"{shop}.attic") is attic
        del sys.modules[f"{shop}.cellar"]
    with deferred([f"{shop}.cellar"]):
        assert importlib.import_module(f"{shop}.cellar").bottle == 7
    assert _loaded(shop) == {"attic", "cellar", "cellar.wine"}
