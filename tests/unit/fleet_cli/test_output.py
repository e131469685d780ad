"""Tables fit the terminal: columns go in their order, sentences are wrapped or put below, nothing is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_fleet.cli import device_tables, race_tables
from regatta_fleet.cli.output import Cell, Column, Table, render
from regatta_protocol.measurement import RaceReport
from sample_fleet import device, race

REASON = "signal 11 in libedgetpu.so.1 while preparing"
RACE = race_tables.race(RaceReport.model_validate(race()))


def plain(lines: list[str]) -> list[str]:
    import click

    return [click.unstyle(line) for line in lines]


def test_without_a_terminal_each_row_is_one_line() -> None:
    """Scripts get every column, unwrapped."""
    lines, left_out = render(RACE, None)

    assert len(lines) == 1 + len(RACE.rows)
    assert not left_out
    assert any(REASON in line for line in lines)


def test_columns_are_aligned() -> None:
    """Figures end in one column, names begin in one."""
    table = Table((Column("NAME"), Column("P50", right=True)), (("a", "1.25 ms"), (Cell("bcd", "good"), "9 µs")))

    assert plain(render(table, None)[0]) == ["NAME      P50", "a     1.25 ms", "bcd      9 µs"]


@pytest.mark.parametrize(("width", "gone"), [(150, []), (112, ["MEMORY"]), (80, ["MEMORY", "FIRST", "ENERGY"])])
def test_the_least_important_columns_go_first(width: int, gone: list[str]) -> None:
    """What is left out is named, and the candidates with their reasons stay."""
    lines, left_out = render(RACE, width)

    assert left_out == gone
    assert all(len(line) <= width for line in plain(lines))
    text = " ".join(" ".join(plain(lines)).split())
    assert "litert/int8-pruned/xnnpack/t2" in text
    assert "libedgetpu.so.1" in text


@given(st.integers(min_value=20, max_value=200))
def test_no_word_is_lost_at_any_width(width: int) -> None:
    """Sentences are wrapped or stand below their row, whole."""
    lines, _ = render(RACE, width)

    words = " ".join(plain(lines)).split()
    assert {"libedgetpu.so.1", "reference,", "placed"} <= set(words)


def test_a_device_table_says_what_a_placement_rests_on() -> None:
    """A race in full, one that confirmed an earlier result, or not told by an older agent."""
    told = device("quay-1")
    for basis, shown in (("full", "full"), ("confirmed", "confirmed"), (None, "–")):
        models = (told.models[0].model_copy(update={"basis": basis}),)
        table = device_tables.devices([told.model_copy(update={"models": models})], now=0.0)
        place = [column.name for column in table.columns].index("RACE")

        assert str(table.rows[0][place]) == shown


def test_a_degraded_model_is_told_from_a_sound_one_with_its_reason() -> None:
    """The overview says degraded in place of serving and adds a note; a device's own table has the reason."""
    sound = device("quay-1")
    hurt = sound.model_copy(
        update={"models": (sound.models[0].model_copy(update={"degraded": "the runner was ended by SIGSEGV"}),)}
    )

    overview = device_tables.devices([hurt], now=hurt.last_seen or 0.0)
    own = "\n".join(plain(render(device_tables.device_models(hurt), None)[0]))

    assert any("degraded" in line for line in plain(render(overview, None)[0]))
    assert overview.notes == ("quay-1 serves digits:1 degraded: the runner was ended by SIGSEGV",)
    assert "SIGSEGV" in own
    assert device_tables.devices([sound], now=0.0).notes == ()
