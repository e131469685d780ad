"""The `regatta` command run in this process: its standard output, or the document that it prints."""

from __future__ import annotations

import json
from typing import Any

import pytest

from regatta_fleet.cli import main

__all__ = ["DEADLINE_S", "document", "output"]

DEADLINE_S = 10.0


def output(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> str:
    """Run the command; returns its standard output."""
    got = main(args)
    printed = capsys.readouterr()
    assert got == code, printed.err
    assert "Traceback" not in printed.err
    return printed.out


def document(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> Any:
    return json.loads(output(capsys, *args, "--json", code=code))
