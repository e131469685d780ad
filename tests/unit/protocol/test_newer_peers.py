"""What a newer peer says: words that this program does not know cost themselves, and a newer schema is named."""

from __future__ import annotations

import json

import pytest
from pydantic import TypeAdapter

from regatta_protocol.codec import decode, encode
from regatta_protocol.enums import OpenStrEnum
from regatta_protocol.errors import Rejected, TooNew
from regatta_protocol.ids import DeviceId, ModelName
from regatta_protocol.manifest import Manifest
from regatta_protocol.measurement import BoardFacts, CandidateResult, Outcome, RaceReport
from regatta_protocol.messages import (
    Assignment,
    DesiredModel,
    InstallState,
    ModelReport,
    OtherItem,
    Presence,
    Reported,
    Request,
    TelemetryBatch,
)
from regatta_protocol.policy import OBJECTIVE_WORDS, KnownPolicy, Policy
from regatta_protocol.values import Power

_RESULT = CandidateResult(
    id="litert/int8/none/t1", runtime="litert", variant="int8", delegate="none", threads=1, outcome=Outcome.MEASURED
)


@pytest.mark.parametrize("kind", [Outcome, InstallState])
def test_a_word_of_a_newer_peer_keeps_its_text_and_equals_no_member(kind: type[OpenStrEnum]) -> None:
    """It is read, told apart, and passed on as it came."""
    word = kind("melted_down")

    assert (word, word.name, word.known) == ("melted_down", "UNKNOWN", False)
    assert word not in list(kind) and word not in {*kind}
    assert all(member.known for member in kind)
    assert word == kind("melted_down")


@pytest.mark.parametrize("text", ["", "Loud", "a b", "x" * 65, "é"])
def test_what_is_no_word_is_no_value(text: str) -> None:
    """Only what a peer may have added is read; noise is refused as before."""
    with pytest.raises(ValueError, match="not a valid"):
        Outcome(text)


def test_a_report_with_an_unknown_outcome_is_read_and_written_as_it_came() -> None:
    """One candidate's word costs neither the race report nor the batch."""
    report = RaceReport(
        model="digits", version=1, board=BoardFacts(), candidates=(_RESULT,), reason="fastest", duration_s=1.0
    )
    newer = encode(report).replace(b'"measured"', b'"melted_down"')

    read = decode(RaceReport, newer)

    assert read.candidates[0].outcome == "melted_down"
    assert encode(read) == newer


@pytest.mark.parametrize(
    ("known", "newer"),
    [(b'"method":"measured"', b'"method":"modeled"'), (b'"basis":"full"', b'"basis":"interpolated"')],
)
def test_a_report_with_other_unknown_words_is_read_and_written_as_it_came(known: bytes, newer: bytes) -> None:
    """How power was found, and what a race rests on, are words like the outcome."""
    result = _RESULT.model_copy(update={"power": Power(method="measured", power_mw=1500.0)})
    report = RaceReport(
        model="digits", version=1, board=BoardFacts(), candidates=(result,), reason="fastest", duration_s=1.0
    )
    text = encode(report)
    assert known in text

    assert encode(decode(RaceReport, text.replace(known, newer))) == text.replace(known, newer)


@pytest.mark.parametrize("word", ["", "Loud", "a b", "x" * 65])
def test_noise_is_no_word(word: str) -> None:
    """What nobody can have meant is refused as before."""
    with pytest.raises(ValueError, match="should match pattern"):
        Policy.model_validate({"objective": word})
    with pytest.raises(ValueError, match="should match pattern"):
        CandidateResult.model_validate({**_RESULT.model_dump(), "power": {"method": word}})


def test_what_a_newer_peer_says_inside_a_value_is_passed_over_and_beside_it_kept() -> None:
    """A value is read by workers without pydantic too, and has the fields that it has."""
    power = {"method": "measured", "power_mw": 900.0, "interval": 7}

    read = CandidateResult.model_validate({**_RESULT.model_dump(), "power": power, "power_rails": ["cpu"]})

    assert read.power == Power(method="measured", power_mw=900.0)
    assert read.model_dump()["power_rails"] == ["cpu"] and "interval" not in read.model_dump()["power"]


def test_an_objective_that_only_a_newer_fleet_knows_is_read_but_nobody_may_set_it_here() -> None:
    """A device takes the assignment up; a typing error of an operator is refused, with the objectives there are."""
    wish = {"version": 1, "policy": {"objective": "carbon"}}

    read = DesiredModel.model_validate(wish)

    assert read.policy is not None and read.policy.objective == "carbon"
    with pytest.raises(ValueError, match="no objective 'carbon'; the objectives are latency_p50, latency_p99, energy"):
        TypeAdapter(KnownPolicy).validate_python(wish["policy"])
    for objective in OBJECTIVE_WORDS:
        TypeAdapter(KnownPolicy).validate_python({"objective": objective})


def test_a_report_with_an_unknown_state_is_read() -> None:
    """An older server still learns of the device's other versions."""
    models = (ModelReport(name=ModelName("digits"), version=1, state=InstallState.COMMITTED),)
    report = Reported(device=DeviceId("d"), generation=1, sequence=1, agent_version="9", boot="b", models=models)

    read = decode(Reported, encode(report).replace(b'"committed"', b'"warming_up"'))

    assert read.models[0].state == "warming_up"
    assert not read.models[0].state.known


def test_telemetry_of_an_unknown_kind_leaves_the_rest_of_its_batch() -> None:
    """The item keeps what it says, so that it could be passed on."""
    text = json.dumps({"id": "12345678", "device": "d", "items": [{"kind": "mood", "level": 3}, {"kind": "serving"}]})
    with pytest.raises(Rejected, match=r"items\.1\.serving"):  # a known kind is still held to its shape
        decode(TelemetryBatch, text.encode())

    batch = decode(TelemetryBatch, text.replace(', {"kind": "serving"}', "").encode())

    assert batch.items == (OtherItem.model_validate({"kind": "mood", "level": 3}),)


def test_a_request_of_an_unknown_method_can_be_answered() -> None:
    """The server refuses it by its id, where a message that cannot be read would have no answer."""
    assert decode(Request, b'{"id":"1","method":"weather"}').method == "weather"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Presence, '{"schema_version":2,"up":true}'),
        (Manifest, '{"schema_version":3,"layers":["other shape"]}'),
        (Assignment, '{"schema_version":2,"fleet":"f","device":"d","generation":1,"issued_at":1,"models":[]}'),
    ],
)
def test_a_newer_schema_is_named_whether_or_not_it_parses(
    kind: type[Presence] | type[Manifest] | type[Assignment], text: str
) -> None:
    """The operator learns that this program is too old, not that some field is wrong."""
    with pytest.raises(TooNew, match=rf"{kind.__name__} is of schema version \d, and this program knows up to 1: upd"):
        decode(kind, text.encode())
