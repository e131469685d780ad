"""The table of states: every pair is known or refused, and the picture in the docs is the table's."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from regatta_agent.core.states import IN_PROGRESS, SETTLED, TRANSITIONS, Event, next_state, render_mermaid
from regatta_protocol.errors import Misuse
from regatta_protocol.messages import InstallState

_DIAGRAM = Path(__file__).parents[3] / "docs" / "agent-states.md"


@pytest.mark.parametrize(("state", "event"), list(product(InstallState, Event)))
def test_every_pair_is_in_the_table_or_raises(state: InstallState, event: Event) -> None:
    """An unknown pair raises and names both; a known one leads where the table says."""
    if (state, event) in TRANSITIONS:
        assert next_state(state, event) is TRANSITIONS[(state, event)]
    else:
        with pytest.raises(Misuse, match=f"{state}.*{event}"):
            next_state(state, event)


def test_every_state_is_reached_and_can_be_left() -> None:
    """No state is an island, and none is a trap."""
    assert {state for state, _ in TRANSITIONS} == set(InstallState)
    assert set(TRANSITIONS.values()) == set(InstallState)


@pytest.mark.parametrize("state", sorted(IN_PROGRESS))
def test_whatever_is_in_progress_can_be_withdrawn_and_ends_when_it_fails(state: InstallState) -> None:
    """A newer generation supersedes any state, and none can be in progress for ever."""
    assert next_state(state, Event.WITHDRAWN) is InstallState.RETIRED
    ends = {next_state(state, event) for event in (Event.GAVE_UP, Event.TRIAL_FAILED) if (state, event) in TRANSITIONS}
    assert ends and ends <= SETTLED


@pytest.mark.parametrize("state", sorted(SETTLED - {InstallState.COMMITTED}))
def test_whatever_has_ended_can_be_wanted_anew(state: InstallState) -> None:
    """A failed, rolled back or retired version can be assigned again."""
    assert next_state(state, Event.REASSIGNED) is InstallState.ASSIGNED


def test_the_diagram_in_the_docs_is_current() -> None:
    """docs/agent-states.md is what the table renders; `regatta-agent states > docs/agent-states.md` renews it."""
    assert _DIAGRAM.read_text() == render_mermaid()
