"""What the doctor says: one fact a line, in groups, each with how to mend it; and how that is printed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import click

__all__ = ["Finding", "print_findings"]

_MIN_WIDTH = 40  # of the text, on a narrow terminal


@dataclass(frozen=True)
class Finding:
    """`level`: ok; note, when it could be better; problem, when it stops the agent. `fix`: how to mend it."""

    group: str
    subject: str
    level: Literal["ok", "note", "problem"]
    text: str
    fix: str | None = None


def print_findings(findings: Sequence[Finding], width: int) -> None:
    """Print the groups in their order, with aligned columns; a fix stands below its finding."""
    subject_width = max((len(finding.subject) for finding in findings), default=0)
    indent = 2 + 7 + 2 + subject_width + 2
    for number, group in enumerate(dict.fromkeys(finding.group for finding in findings)):
        click.echo(("\n" if number else "") + group)
        for finding in (one for one in findings if one.group == group):
            lines = _wrap(finding.text, width - indent)
            lines += [("→ " if first else "  ") + line for first, line in _numbered(finding.fix, width - indent - 2)]
            click.echo(f"  {finding.level:7}  {finding.subject:{subject_width}}  {lines[0]}".rstrip())
            for line in lines[1:]:
                click.echo(" " * indent + line)


def _wrap(text: str, width: int) -> list[str]:
    """Return the text in lines; commands and paths are never broken inside a word."""
    return textwrap.wrap(text, max(width, _MIN_WIDTH), break_long_words=False, break_on_hyphens=False) or [""]


def _numbered(text: str | None, width: int) -> list[tuple[bool, str]]:
    return [] if text is None else [(number == 0, line) for number, line in enumerate(_wrap(text, width))]
