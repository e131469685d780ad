"""Confirmation runs in real workers: what holds is placed at once, and whatever does not ends in a full race."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from paced_backend import Pace, paced_spec
from quick_race import quicken_races
from regatta_protocol.codec import decode, encode
from regatta_protocol.ids import Digest
from regatta_protocol.measurement import CandidateResult, Outcome, PriorRace, RaceReport
from regatta_protocol.values import Accuracy
from regatta_runtimes.race.run import RaceSpec, run_race
from shared_data import shared_file

CHILD = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
FAST, SECOND, THIRD, SLOW = (f"paced/v/{way}" for way in ("xnnpack/t2", "xnnpack/t1", "none/t2", "none/t1"))
PACES: dict[str, Pace] = {"xnnpack/t2": 2.0, "xnnpack/t1": 6.0, "none/t2": 12.0, "none/t1": 20.0}
FLASH = {"samples": 9, "p50_us": 1.0, "p90_us": 1.0, "p99_us": 1.0}
Forge = Callable[[RaceReport], RaceReport]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> RaceReport:
    """Return the neighbor's full race."""
    return run_race(paced_spec(tmp_path_factory.mktemp("neighbor"), PACES))


@pytest.fixture(autouse=True)
def _quick_races(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_races(monkeypatch)


def _hear(
    folder: Path, full: RaceReport, forge: Forge = lambda report: report, now: Mapping[str, Pace] | None = None,
    **fields: object,
) -> RaceReport:  # fmt: skip
    """Return the race here that hears of the neighbor's as `forge` tells it.

    `now` is how fast this board is; the key is made to fit all the same.
    """

    def consult(key: Digest) -> PriorRace:
        return PriorRace(device="neighbor", at=1.0, report=forge(full.model_copy(update={"key": key})))

    return run_race(paced_spec(folder / "here", now or PACES, **fields), consult=consult)


def _with(**changes: Mapping[str, object]) -> Forge:
    """Return a forger that changes fields of single results."""

    def forge(report: RaceReport) -> RaceReport:
        candidates = tuple(
            CandidateResult.model_validate({**one.model_dump(), **changes.get(f"{one.delegate}_t{one.threads}", {})})
            for one in report.candidates
        )
        return report.model_copy(update={"candidates": candidates})

    return forge


def _p50(result: CandidateResult | None) -> float:
    assert result is not None
    assert result.latency is not None
    return result.latency.p50_us


def test_what_holds_is_placed_without_a_full_race(tmp_path: Path, full: RaceReport) -> None:
    """The placement, its figures and its soundness are this board's; whose race it rests on is told."""
    here = _hear(tmp_path, full)

    assert full.basis == "full"
    assert (here.basis, here.placement) == ("confirmed", FAST)
    assert here.prior is not None
    assert (here.prior.device, here.prior.placement) == ("neighbor", FAST)
    assert "confirmed: what neighbor measured holds here" in here.reason
    assert _p50(here.placed()) >= 2000  # it sleeps for 2 ms
    placed = here.placed()
    assert placed is not None
    assert placed.golden_snr_db is not None
    assert {one.id for one in here.candidates} == {one.id for one in full.candidates}
    assert here.key is not None
    assert decode(RaceReport, encode(here)) == here


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        ({"xnnpack/t2": "wrong"}, f"{FAST} is wrong_output here"),
        ({"xnnpack/t2": "crash"}, f"{FAST} is crashed here"),
        ({"xnnpack/t2": 30.0}, f"{SECOND} beats {FAST} here"),
        ({"xnnpack/t1": 1.0}, f"{SECOND} beats {FAST} here"),
    ],
)
def test_what_does_not_hold_is_raced_in_full(
    tmp_path: Path, full: RaceReport, now: dict[str, Pace], reason: str
) -> None:
    """In the same process, with the reason told; the winner is this board's."""
    here = _hear(tmp_path, full, now={**PACES, **now})

    assert here.basis == "full"
    assert here.prior is None
    assert here.placement == SECOND
    assert "raced in full: the race of neighbor does not hold here" in here.reason
    assert reason in here.conditions["prior"]


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(
            _with(none_t1={"outcome": "measured", "latency": FLASH}),
            id="slow called fast",
        ),
        pytest.param(lambda report: report.model_copy(update={"candidates": ()}), id="nothing"),
        pytest.param(lambda report: report.model_copy(update={"candidates": report.candidates[:1]}), id="one left"),
        pytest.param(
            lambda report: report.model_copy(
                update={"candidates": (report.candidates[0].model_copy(update={"id": "paced/v/warp/t1"}),)}
            ),
            id="one that is not here",
        ),
        pytest.param(
            lambda report: report.model_copy(
                update={
                    "candidates": tuple(
                        one.model_copy(update={"outcome": Outcome.UNAVAILABLE}) for one in report.candidates
                    )
                }
            ),
            id="all gone",
        ),
        pytest.param(lambda report: report.model_copy(update={"key": "0" * 64}), id="another key"),
        pytest.param(lambda report: report.model_copy(update={"basis": "confirmed"}), id="hearsay"),
    ],
)
def test_a_forged_report_costs_a_full_race_at_most(tmp_path: Path, full: RaceReport, forge: Forge) -> None:
    """Whatever it says, the same candidate is placed as without it."""
    here = _hear(tmp_path, full, forge)

    assert (here.basis, here.placement) == ("full", full.placement)
    assert "raced in full" in here.reason


def test_an_unsound_candidate_is_not_placed_whatever_is_claimed_of_it(tmp_path: Path, full: RaceReport) -> None:
    """A report that calls a wrong candidate the fastest, sound and accurate: golden samples here say otherwise."""
    paces = {**PACES, "none/t1": "wrong"}
    praise = {
        "outcome": Outcome.MEASURED,
        "golden_snr_db": 120.0,
        "accuracy": Accuracy(correct=100, total=100),
        "latency": FLASH,
    }

    here = _hear(tmp_path, full, _with(none_t1=praise), paces)

    assert here.placement == FAST
    wrong = next(one for one in here.candidates if one.id == SLOW)
    assert wrong.outcome == Outcome.WRONG_OUTPUT


def test_the_confirmed_accuracy_is_measured_here(tmp_path: Path, full: RaceReport) -> None:
    """On the bundle's evaluation set; a claimed one is not believed."""
    y = np.arange(12) % 4
    evaluation = tmp_path / "evaluation.npz"
    np.savez(evaluation, x=np.eye(4, dtype=np.float32)[y], y=np.where(np.arange(12) < 3, y + 1, y) % 4)
    claimed = {"accuracy": Accuracy(correct=12, total=12)}

    here = _hear(tmp_path, full, _with(xnnpack_t2=claimed), evaluation=str(evaluation))

    placed = here.placed()
    assert placed is not None
    assert here.basis == "confirmed"
    assert placed.accuracy == Accuracy(correct=9, total=12)


def test_a_board_that_is_slower_at_everything_confirms(tmp_path: Path, full: RaceReport) -> None:
    """Ratios count, not times."""
    slower = {way: 3 * ms if isinstance(ms, float) else ms for way, ms in PACES.items()}

    here = _hear(tmp_path, full, now=slower)

    assert here.basis == "confirmed"
    assert _p50(here.placed()) >= 6000  # it sleeps for 6 ms


def _program(tmp_path: Path, spec: RaceSpec) -> subprocess.Popen[bytes]:
    (tmp_path / "spec.json").write_bytes(encode(spec))
    return subprocess.Popen(
        [sys.executable, "-m", "regatta_runtimes.race.run", "spec.json", "--output", "report.json"],
        cwd=tmp_path,
        env=CHILD,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


@pytest.mark.parametrize("answer", ["a result", "none", "garbage"])
def test_the_program_asks_by_a_line_and_hears_by_the_end_of_its_input(
    tmp_path: Path, full: RaceReport, answer: str
) -> None:
    """`key KEY`, then the file of the specification; without one, or with nonsense, it races in full."""
    spec = paced_spec(tmp_path / "here", PACES, prior_path=str(tmp_path / "prior.json"))
    race = _program(tmp_path, spec)
    assert race.stdin is not None
    assert race.stdout is not None
    line = b""
    while not line.startswith(b"key "):
        line = race.stdout.readline()
        assert line, "it ended without asking"
    key = Digest(line.decode().split()[1])
    if answer == "a result":
        report = full.model_copy(update={"key": key})
        (tmp_path / "prior.json").write_bytes(encode(PriorRace(device="neighbor", at=1.0, report=report)))
    elif answer == "garbage":
        (tmp_path / "prior.json").write_bytes(b"\x00{")

    race.stdin.close()
    race.stdout.read()

    assert race.wait(60) == 0
    report = decode(RaceReport, (tmp_path / "report.json").read_bytes())
    assert report.basis == ("confirmed" if answer == "a result" else "full")
    assert (report.key, report.placement) == (key, FAST)


@pytest.mark.alone
def test_a_real_model_is_confirmed_in_less_time_than_it_is_raced(monkeypatch: pytest.MonkeyPatch) -> None:
    """MobileNetV2, with the runtimes that are here; a busy machine may race again, but then says so."""
    monkeypatch.undo()  # a final of whole length is what a confirmation saves
    model = shared_file("coral/mobilenet_v2_1.0_224_quant.tflite")
    spec = RaceSpec.model_validate(
        {"model": "m", "version": 1, "variants": [{"name": "v", "path": str(model)}], "threads": [1]}
    )
    full = run_race(spec, consult=lambda _key: None)

    for _ in range(5):
        report = run_race(spec, consult=lambda _key: PriorRace(device="a", at=1.0, report=full))
        if report.basis == "confirmed":
            break
        assert "raced in full: the race of a does not hold here" in report.reason

    assert (report.basis, report.placement) == ("confirmed", full.placement), report.reason
    assert report.duration_s < full.duration_s
