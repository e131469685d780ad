"""docs/cli.md is what the program says of itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from regatta_fleet.cli import exit_codes
from regatta_fleet.cli.reference import regatta_page
from regatta_protocol import errors

PAGE = Path(__file__).parents[3] / "docs" / "cli.md"
needs_demo = pytest.mark.skipif(
    importlib.util.find_spec("regatta_fleet.demo") is None, reason="the demo is not in this tree"
)


@needs_demo
def test_the_page_is_current() -> None:
    """Whoever changes a command makes the page anew."""
    assert PAGE.read_text(encoding="utf-8") == regatta_page(), (
        "make it anew: python -m regatta_fleet.cli.reference > docs/cli.md"
    )


def test_every_family_of_errors_has_its_code_explained() -> None:
    """No error can end the program with a code that the page does not list."""
    families = [getattr(errors, name) for name in errors.__all__]

    assert {family.exit_code for family in families} <= set(exit_codes.MEANINGS)
