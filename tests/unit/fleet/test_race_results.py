"""Which of the devices' results the fleet answers with: full races, the most agreed on, the newest, nobody revoked."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from fleet_parts import SimulatedFleet
from regatta_fleet.database import devices
from regatta_fleet.database.race_results import RESULTS_KEPT, find_result, note_race
from regatta_fleet.database.tables import race_results
from regatta_protocol.ids import DeviceId, Digest, digest_of_bytes
from regatta_protocol.measurement import BoardFacts, PriorRace, RaceOrigin, RaceReport
from regatta_protocol.messages import RaceItem

KEY = digest_of_bytes(b"key")
A, B, C = DeviceId("a"), DeviceId("b"), DeviceId("c")


@pytest.fixture
def fleet() -> SimulatedFleet:
    fleet = SimulatedFleet()
    fleet.enroll(A, B, C)
    return fleet


def full(placement: str | None = "x", reason: str = "r", key: Digest | None = KEY) -> RaceReport:
    return RaceReport(
        model="m",
        version=1,
        board=BoardFacts(),
        candidates=(),
        placement=placement,
        reason=reason,
        duration_s=1,
        key=key,
    )


def confirmed(placement: str, of: DeviceId = A) -> RaceReport:
    origin = RaceOrigin(device=of, at=1.0, placement=placement)
    return full(placement).model_copy(update={"basis": "confirmed", "prior": origin})


def note(fleet: SimulatedFleet, device: DeviceId, report: RaceReport, now: float = 10.0, at: float = 5.0) -> None:
    with fleet.database.write() as tx:
        note_race(tx, device, RaceItem(at=at, report=report), now)


def answer(fleet: SimulatedFleet, key: Digest = KEY) -> PriorRace | None:
    with fleet.database.read() as tx:
        return find_result(tx, key)


def answerer(fleet: SimulatedFleet) -> str | None:
    found = answer(fleet)
    return None if found is None else found.device


def test_a_result_comes_back_as_it_was_sent(fleet: SimulatedFleet) -> None:
    """With who ran it and when, by the device's clock."""
    note(fleet, A, full(reason="because"))

    assert answer(fleet) == PriorRace(device=A, at=5.0, report=full(reason="because"))
    assert answer(fleet, digest_of_bytes(b"another")) is None


def test_what_rests_on_something_unknown_is_no_evidence(fleet: SimulatedFleet) -> None:
    """A basis that only newer agents have is neither a full race nor a voice for one."""
    note(fleet, A, full())
    note(fleet, A, confirmed("y").model_copy(update={"basis": "interpolated"}), now=20)

    assert answer(fleet) == PriorRace(device=A, at=5.0, report=full())


def test_the_newest_counts_by_the_servers_clock(fleet: SimulatedFleet) -> None:
    """A device whose clock runs ahead is not heard more for it."""
    note(fleet, A, full(), now=10, at=9e9)
    note(fleet, B, full(), now=20, at=5)

    assert answerer(fleet) == B


def test_the_placement_that_most_found_or_confirmed_is_answered(fleet: SimulatedFleet) -> None:
    """One device that says otherwise, however late, does not outvote two; another full race outvotes confirmations."""
    note(fleet, A, full("x"), now=10)
    note(fleet, B, confirmed("x"), now=11)
    note(fleet, C, full("y"), now=12)
    assert answerer(fleet) == A

    fleet.enroll("d")
    note(fleet, DeviceId("d"), full("y"), now=9)
    assert answerer(fleet) == C


def test_a_confirmation_alone_is_no_result(fleet: SimulatedFleet) -> None:
    """Its figures are of few candidates."""
    note(fleet, B, confirmed("x"))

    assert answerer(fleet) is None


def test_a_device_that_confirms_its_own_race_keeps_it(fleet: SimulatedFleet) -> None:
    """And one that confirms another placement takes its own result back."""
    note(fleet, A, full("x"), now=10)
    note(fleet, A, confirmed("x"), now=11)
    assert answerer(fleet) == A

    note(fleet, A, confirmed("y", of=B), now=12)
    assert answerer(fleet) is None


@pytest.mark.parametrize("report", [full(placement=None), full(key=None)])
def test_what_says_nothing_is_not_stored(fleet: SimulatedFleet, report: RaceReport) -> None:
    """A race that placed nothing, and one of an agent that knows no keys."""
    note(fleet, A, report)

    with fleet.database.read() as tx:
        assert tx.execute(select(func.count()).select_from(race_results)).scalar_one() == 0


def test_revoked_devices_are_not_heard(fleet: SimulatedFleet) -> None:
    """Nor counted."""
    note(fleet, A, full("x"))
    note(fleet, B, full("y"), now=5)
    note(fleet, C, confirmed("x"))
    with fleet.database.write() as tx:
        devices.revoke_device(tx, A, 20)
        devices.revoke_device(tx, C, 20)

    assert answerer(fleet) == B


def test_one_device_fills_a_bounded_number_of_rows(fleet: SimulatedFleet) -> None:
    """Its oldest go; those of others stay."""
    note(fleet, B, full(), now=0)
    for number in range(RESULTS_KEPT + 5):
        note(fleet, A, full(key=digest_of_bytes(str(number).encode())), now=number + 1)

    with fleet.database.read() as tx:
        counts = tx.execute(select(race_results.c.device, func.count()).group_by(race_results.c.device)).all()
    assert {tuple(row) for row in counts} == {(A, RESULTS_KEPT), (B, 1)}
    assert answer(fleet, digest_of_bytes(b"0")) is None
    assert answer(fleet, digest_of_bytes(str(RESULTS_KEPT + 4).encode())) is not None
