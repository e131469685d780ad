"""The reference page lists what the program may end with."""

from __future__ import annotations

from regatta_fleet.cli import exit_codes
from regatta_protocol import errors


def test_every_family_of_errors_has_its_code_explained() -> None:
    """No error can end the program with a code that the page does not list."""
    families = [getattr(errors, name) for name in errors.__all__]

    assert {family.exit_code for family in families} <= set(exit_codes.MEANINGS)
