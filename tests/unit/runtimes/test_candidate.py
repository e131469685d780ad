"""Candidates and their names."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_protocol.errors import Rejected
from regatta_runtimes.candidate import Candidate, parse_candidate_id

_part = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)


@given(_part, _part, _part, st.integers(1, 256))
def test_an_id_names_its_candidate(runtime: str, variant: str, delegate: str, threads: int) -> None:
    """Writing and reading an id gives the same candidate."""
    candidate = Candidate(runtime, variant, delegate, threads)

    assert parse_candidate_id(candidate.id) == candidate


@pytest.mark.parametrize(
    "text", ["", "litert", "litert/int8/none", "litert/int8/none/2", "a/b/c/t0", "a/b/c/t999", "a/b/c/t1/"]
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
