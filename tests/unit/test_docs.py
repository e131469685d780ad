"""The generated pages are what the programs say of themselves, and links between pages lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from shared_data import REPOSITORY


def _pages() -> dict[Path, str]:
    spec = importlib.util.spec_from_file_location("generate", REPOSITORY / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[Path, str] = module.pages()
    return found


def test_generated_pages_are_current() -> None:
    """Whoever changes a command or the table of states runs ./run docs."""
    stale = [path.name for path, text in _pages().items() if path.read_text(encoding="utf-8") != text]

    assert stale == [], "make them anew: ./run docs"


def test_links_between_pages_lead_somewhere() -> None:
    """Every relative link of the README and the docs names a file that is there."""
    pages = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
    broken = [
        f"{page.relative_to(REPOSITORY)} -> {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if "://" not in link and not (page.parent / link).exists()
    ]

    assert broken == []


def test_the_tests_that_the_reliability_page_names_are_there() -> None:
    """Each scenario's proof can be run by the words that the page gives."""
    page = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py): (\w+)`", page)
    missing = [
        f"{path}: {words}"
        for path, words in named
        if not re.search(rf"def test_\w*{words}", (REPOSITORY / "tests" / path).read_text(encoding="utf-8"))
    ]

    assert len(named) > 20
    assert missing == []
