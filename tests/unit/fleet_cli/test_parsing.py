"""Durations, shares, waves and gates are read as people write them, and refused with a right example."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_fleet.cli.parsing import GATE_KEYS, parse_gate, parse_waves
from regatta_fleet.schemas import GateConfig
from regatta_protocol.errors import Rejected
from regatta_protocol.quantity import parse_duration, parse_share


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("1.5", 1.5),
        ("90s", 90.0),
        ("500ms", 0.5),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        ("2 days", 172_800.0),
        ("1 Hour", 3600.0),
        ("1w", 604_800.0),
        (" 10 min ", 600.0),
    ],
)
def test_reads_durations(text: str, seconds: float) -> None:
    """A duration may be a number of seconds or carry units, short or long, several of them."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "-5s", "5 fortnights", "1h30", "30 1h", "1,5h", "nan", "h"])
def test_refuses_what_is_no_duration(text: str) -> None:
    """Anything else is refused with an example; a bare number beside units is ambiguous."""
    with pytest.raises(Rejected, match="write for example 90s"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "share"), [("10%", 0.1), ("10 %", 0.1), ("0.1", 0.1), ("1", 1.0), ("100%", 1.0)])
def test_reads_shares(text: str, share: float) -> None:
    """A share is a percentage or a number up to 1."""
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "ten", "-1%", "0.5.1", "nan", "inf", "1e400"])
def test_refuses_what_is_no_share(text: str) -> None:
    """Anything else is refused with an example."""
    with pytest.raises(Rejected, match="write for example 10%"):
        parse_share(text)


def test_refuses_a_bare_number_that_may_mean_percent() -> None:
    """10 is not taken for 1000 %, nor guessed to be 10 %."""
    with pytest.raises(Rejected, match="write 10% if you mean percent"):
        parse_share("10")


def test_reads_waves() -> None:
    """Waves are cumulative shares, in any mix of forms."""
    assert parse_waves("10%, 0.5,100%") == pytest.approx((0.1, 0.5, 1.0))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("50%,10%,100%", "must rise"),
        ("0%,100%", "must rise"),
        ("10%,50%", "must end with 100%"),
        ("10%,,100%", "is no share"),
        ("150%", "more than the whole"),
    ],
)
def test_refuses_waves_that_make_no_sense(text: str, words: str) -> None:
    """Waves that do not rise to the whole are refused, saying why."""
    with pytest.raises(Rejected, match=words):
        parse_waves(text)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("accuracy-drop=2%", "max_accuracy_drop", 0.02),
        ("accuracy-drop=0.02", "max_accuracy_drop", 0.02),
        ("success-ratio=90%", "min_success_ratio", 0.9),
        ("p99-ratio=1.5", "max_p99_ratio", 1.5),
        ("on-failure=roll-back", "on_failure", "roll_back"),
        ("on-failure=hold", "on_failure", "hold"),
        ("timeout=10m", "timeout_s", 600.0),
    ],
)
def test_reads_gates(text: str, field: str, value: object) -> None:
    """Each key of the gate sets the schema's field."""
    assert parse_gate(text) == (field, value)


def test_every_field_of_the_gate_has_a_key() -> None:
    """What the schema can, the command line can."""
    assert set(GATE_KEYS.values()) == set(GateConfig.model_fields)


@pytest.mark.parametrize(
    "text", ["accuracy-drop", "speed=1", "p99-ratio=0", "p99-ratio=fast", "on-failure=panic", "accuracy-drop=3"]
)
def test_refuses_wrong_gates(text: str) -> None:
    """A wrong key or value is refused."""
    with pytest.raises(Rejected):
        parse_gate(text)


@given(st.text(max_size=40))
def test_parsers_end_in_a_value_or_a_refusal(text: str) -> None:
    """No text makes a parser fail in another way, or yield what is out of range."""
    for parse in (parse_duration, parse_share, parse_waves, parse_gate):
        try:
            value = parse(text)
        except Rejected:
            continue
        if parse is parse_share:
            assert isinstance(value, float)
            assert 0 <= value <= 1
