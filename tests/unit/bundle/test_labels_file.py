"""Labels files of both kinds become one label a class."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_fleet.models.labels import labels_text, parse_labels
from regatta_protocol.errors import Rejected


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("cat\ndog\n", ("cat", "dog")),
        ("cat\r\ndog", ("cat", "dog")),
        ("\ufeffcat\ndog\n\n\n", ("cat", "dog")),
        ("0  background\n1  tench, Tinca tinca\n", ("background", "tench, Tinca tinca")),
        ("1: dog\n0: cat\n", ("cat", "dog")),
        ("0 person\n2 car\n", ("person", "class 1", "car")),
        ("0\n1\n2\n", ("0", "1", "2")),
        ("7 up\ncola\n", ("7 up", "cola")),
        ("1 way\n1 more\n", ("1 way", "1 more")),
    ],
)
def test_plain_and_indexed_files_are_told_apart(text: str, labels: tuple[str, ...]) -> None:
    assert parse_labels(text.encode(), "labels.txt") == labels


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "no labels"), (b"\n\n", "no labels"), (b"\xff\xfe\x00", "UTF-8"), (b"999999 far\n", "1000000 labels")],
)
def test_what_is_no_labels_file_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(Rejected, match=words):
        parse_labels(data, "labels.txt")


@given(st.binary(max_size=300))
def test_any_bytes_are_labels_or_refused(data: bytes) -> None:
    try:
        labels = parse_labels(data, "labels.txt")
    except Rejected:
        return
    assert len(labels) >= 1


def test_labels_survive_being_written() -> None:
    assert parse_labels(labels_text(("a", "b c")), "labels.txt") == ("a", "b c")
