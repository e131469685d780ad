"""Candidates and their names."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_protocol.errors import Rejected
from regatta_runtimes.candidate import Candidate, parse_candidate_id

_part = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)


@given(_part, _part, _part, st.integers(1, 256), st.just("") | _part)
def test_an_id_names_its_candidate(runtime: str, variant: str, delegate: str, threads: int, option_set: str) -> None:
    """Writing and reading an id gives the same candidate, and reading and writing the same id."""
    candidate = Candidate(runtime, variant, delegate, threads, option_set=option_set)

    assert parse_candidate_id(candidate.id) == candidate
    assert parse_candidate_id(candidate.id).id == candidate.id


@given(_part, _part, _part, st.integers(1, 256), st.just("") | _part)
def test_two_candidates_have_two_ids(runtime: str, variant: str, delegate: str, threads: int, option_set: str) -> None:
    """No option set can be mistaken for a part of another delegate's name."""
    candidate = Candidate(runtime, variant, delegate, threads, option_set=option_set)
    other = Candidate(runtime, variant, candidate.drive.replace("+", "-"), threads)

    assert (candidate.id == other.id) == (candidate == other)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "litert",
        "litert/int8/none",
        "litert/int8/none/2",
        "a/b/c/t0",
        "a/b/c/t999",
        "a/b/c/t1/",
        "a/b/c+/t1",
        "a/b/+c/t1",
        "a/b+c/d/t1",
    ],
)
def test_other_texts_are_rejected(text: str) -> None:
    """The message shows how an id is written."""
    with pytest.raises(Rejected, match="litert/int8/xnnpack/t2"):
        parse_candidate_id(text)


@given(st.text(max_size=60))
def test_any_text_is_a_candidate_or_rejected(text: str) -> None:
    """Nothing else is raised."""
    with contextlib.suppress(Rejected):
        parse_candidate_id(text)
