"""Versions whose worker's start ends the board: what is counted, what is given up, and when it is tried again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from planning import IDLE, LIMITS, NAME, an_install, digest, settled, wanting
from regatta_agent.core import boots, outcomes
from regatta_agent.core.facts import Begin, Facts, JobKind, StartWorker, StopWorker, StoredVersion, WorkerFacts
from regatta_agent.core.installs import AgentRecord, Install, RaceSummary
from regatta_protocol.ids import ModelName, ModelRef
from regatta_protocol.messages import DesiredModel, InstallState

_S = InstallState
TPU, TPU_TOO, CPU = "litert/edge/edgetpu/t1", "tflite/edge/edgetpu/t1", "litert/int8/xnnpack/t1"
REF, BEFORE, OTHER = ModelRef(NAME, 2), ModelRef(NAME, 1), ModelRef(ModelName("faces"), 1)
HOUR_S = 3600.0
KERNEL: Mapping[str, str] = {"kernel": "6.1"}


class Board:
    """A board that ends whenever a worker of `deadly` is started, a version and candidate or a candidate alone."""

    def __init__(self, record: AgentRecord, *deadly: object) -> None:
        self.record = record
        self.deadly = set(deadly)
        self.versions = KERNEL
        self.cut = False  # the power, whatever starts
        self.boots = self.losses = 0
        self.workers: list[tuple[ModelRef, WorkerFacts]] = []
        self.facts = IDLE

    def boot(self, runs_s: float = 100.0) -> bool:
        """Return whether the board is still up after so long."""
        self.boots += 1
        self.workers = []
        self.record = outcomes.recovered(self.record, LIMITS, f"boot {self.boots}")
        running_s = 0.0
        while running_s <= runs_s:
            self.facts = self._facts(running_s)
            self.record, steps = settled(self.record, self.facts)
            started = [step for step in steps if isinstance(step, StartWorker)]
            stopped = {step.socket for step in steps if isinstance(step, StopWorker)}
            self.workers = [(ref, one) for ref, one in self.workers if one.socket not in stopped]
            if any(self.cut or self.deadly & {one.candidate, (one.ref, one.candidate)} for one in started):
                self.losses += 1
                return False
            self.workers += [
                (one.ref, WorkerFacts(one.candidate, True, 0.0, f"{self.boots} {running_s} {one.candidate}"))
                for one in started
            ]
            if not started and runs_s - running_s > HOUR_S:
                running_s += HOUR_S / 2
            running_s += 50.0
            self.workers = [(ref, replace(one, ready_for_s=one.ready_for_s + 50.0)) for ref, one in self.workers]
        return True

    def until_up(self, runs_s: float = 100.0) -> int:
        """Return how many boots it took, the last one included."""
        for count in range(1, 20):
            if self.boot(runs_s):
                return count
        raise AssertionError(f"it boots for ever: {list(self.record.all())}")

    def install(self, ref: ModelRef = REF) -> Install:
        found = self.record.find(ref)
        assert found is not None
        return found

    def served_by(self) -> dict[ModelRef, str]:
        return {ref: one.candidate for ref, one in self.workers}

    def _facts(self, running_s: float) -> Facts:
        first: dict[ModelRef, WorkerFacts] = {}
        second: dict[ModelRef, WorkerFacts] = {}
        for ref, worker in self.workers:
            (second if ref in first else first)[ref] = worker
        stored = {one.ref: StoredVersion(digest(one.version), 0, 0) for one in self.record.all()}
        return replace(
            IDLE, stored=stored, workers=first, successors=second, versions=self.versions, running_s=running_s,
            now_s=IDLE.now_s + running_s, boot=f"boot {self.boots}",
        )  # fmt: skip


def committed(*ranked: str, version: int = 2, **fields: object) -> Install:
    race = RaceSummary(placement=ranked[0], ranked=ranked, versions=dict(KERNEL), at=IDLE.now_s)
    values = {"race": race, "placement": ranked[0], "committed_at": float(version), **fields}
    return an_install(version, _S.COMMITTED, None, **values)


def record_of(*installs: Install) -> AgentRecord:
    record = AgentRecord()
    for install in installs:
        record = record.with_install(install)
    return wanting(record, 2)


def the_version_before() -> Install:
    return committed(CPU, version=1).model_copy(update={"state": _S.RETIRED})


def with_faces(record: AgentRecord) -> AgentRecord:
    """Return the record with another model that serves."""
    assert record.assignment is not None
    models = {**record.assignment.models, OTHER.name: DesiredModel(version=1, rollout="r")}
    record = record.model_copy(update={"assignment": record.assignment.model_copy(update={"models": models})})
    return record.with_install(committed(CPU, version=1).model_copy(update={"name": OTHER.name}))


def test_an_accelerator_that_ends_the_board_at_each_boot_is_given_up_for_the_processor() -> None:
    """Three boots are lost; the fourth serves, passes over its accelerator's other candidate, and tells why."""
    board = Board(record_of(committed(TPU, TPU_TOO, CPU)), TPU, TPU_TOO)

    assert board.until_up() == 4
    install = board.install()
    assert (install.state, board.served_by()) == (_S.COMMITTED, {REF: CPU})
    assert install.degraded is not None
    assert install.degraded.reason == (
        f"{TPU} is given up: the board ended while it was starting, 3 times; {CPU} takes over; tried again when the "
        "agent has run for 1 h, or with another runtime, driver or kernel"
    )
    assert (install.lost_starts, install.starting) == (0, None)


def test_a_worker_is_not_told_of_what_was_given_up() -> None:
    """Neither as the winner that it retries nor as one that stands in: it would open the accelerator."""
    board = Board(record_of(committed(TPU, CPU, TPU_TOO)), TPU)
    board.until_up()

    _, steps = settled(board.record, replace(board.facts, workers={}))

    (start,) = [step for step in steps if isinstance(step, StartWorker)]
    assert (start.candidate, start.winner, start.standbys, start.resting) == (CPU, CPU, (), None)


@pytest.mark.parametrize(("ranked", "boots_lost"), [((CPU,), 3), ((TPU, CPU), 6)])
def test_with_no_candidate_left_the_version_before_serves(ranked: tuple[str, ...], boots_lost: int) -> None:
    """It has passed its trial before, so it serves at once; the one given up stays on disk, to be tried again."""
    board = Board(record_of(the_version_before(), committed(*ranked)), *((REF, one) for one in ranked))

    assert board.until_up() == boots_lost + 1
    assert (board.install(BEFORE).state, board.served_by()) == (_S.COMMITTED, {BEFORE: CPU})
    assert board.install().state is _S.FAILED
    assert (board.install().reason or "").startswith(
        "given up: the board ended while it was starting, 3 times, and no other candidate is left; tried again when"
    )
    kept = [step for step in settled(board.record, board.facts)[1] if hasattr(step, "keep")]
    assert all(REF in step.keep for step in kept)


def test_with_nothing_left_the_agent_is_up_and_waits_for_another_wish() -> None:
    """Nothing is started, the reason is told, and a new rollout begins anew."""
    board = Board(record_of(committed(CPU)), CPU)

    assert board.until_up() == 4
    assert (board.install().state, board.workers) == (_S.FAILED, [])
    asked, steps = settled(wanting(board.record, 2, "r2"), board.facts)
    fresh = asked.find(REF)
    assert fresh is not None
    assert (fresh.state, fresh.given_up, fresh.lost_starts) == (_S.ASSIGNED, (), 0)
    assert Begin(REF, JobKind.AUTHORIZE) in steps


def test_a_flickering_supply_does_not_lose_the_accelerator() -> None:
    """What three chance cuts gave up serves again, proved, after an hour of running."""
    board = Board(record_of(committed(TPU, CPU)))
    board.cut = True
    for _ in range(3):
        board.boot()
    board.cut = False

    assert board.boot(runs_s=HOUR_S - 100)
    assert board.served_by() == {REF: CPU}
    assert board.boot(runs_s=2 * HOUR_S)
    install = board.install()
    assert board.served_by() == {REF: TPU}
    assert (install.placement, install.degraded, install.given_up, install.starting) == (TPU, None, (), None)


def test_a_flickering_supply_does_not_lose_the_only_version() -> None:
    """It is put on trial again after an hour of running, beside nothing, and is committed and proved."""
    board = Board(record_of(committed(CPU)))
    board.cut = True
    for _ in range(3):
        board.boot()
    board.cut = False

    assert board.boot(runs_s=2 * HOUR_S)
    assert (board.install().state, board.served_by()) == (_S.COMMITTED, {REF: CPU})
    assert (board.install().given_up, board.install().starting) == ((), None)


@pytest.mark.parametrize(("ranked", "losses"), [((TPU, CPU), 3 + 3), ((TPU,), 3 + 3)])
def test_what_ends_the_board_each_time_is_tried_again_three_times_and_with_each_other_kernel(
    ranked: tuple[str, ...], losses: int
) -> None:
    """Each try costs one boot; between them the board runs for hours; then it is left alone until something changes."""
    board = Board(record_of(the_version_before(), committed(*ranked)), TPU)
    for _ in range(20):
        board.boot(runs_s=24 * HOUR_S)
    serves = {REF: CPU} if CPU in ranked else {BEFORE: CPU}

    assert (board.losses, board.served_by()) == (losses, serves)
    board.versions = {"kernel": "6.2"}
    for _ in range(5):
        board.boot(runs_s=24 * HOUR_S)
    assert (board.losses, board.served_by()) == (losses + 1, serves)
    board.versions = {"kernel": "6.3"}
    board.deadly = set()
    board.boot(runs_s=24 * HOUR_S)
    assert board.served_by() == {REF: TPU}


@pytest.mark.parametrize("guilty", [REF, OTHER])
def test_nobody_is_given_up_for_what_another_version_did(guilty: ModelRef) -> None:
    """Two models start at each boot; before the last loss each starts alone, and only the guilty one is given up."""
    board = Board(with_faces(record_of(committed(TPU, CPU))), (guilty, TPU if guilty == REF else CPU))

    board.until_up(runs_s=400.0)
    assert board.losses <= 4
    assert [one.ref for one in board.record.all() if one.given_up] == [guilty]
    assert set(board.served_by()) == ({REF, OTHER} if guilty == REF else {REF})


def test_a_race_does_not_begin_beside_a_last_start() -> None:
    """A race that ends the board at each boot is given up itself, after its attempts, and not what serves."""
    racing = an_install(2, _S.RACING, race=None, placement=None)
    record = wanting(AgentRecord().with_install(committed(TPU, CPU, version=1)).with_install(racing), 2)
    facts = replace(IDLE, stored={ref: StoredVersion(digest(ref.version), 0, 0) for ref in (REF, BEFORE)})
    for boot in range(1, 30):
        record = outcomes.recovered(record, LIMITS, f"boot {boot}")
        found, here = record.find(REF), replace(facts, boot=f"boot {boot}")
        if found is not None and found.state is _S.FAILED:
            break
        record, steps = settled(record, here)
        if not [step for step in steps if isinstance(step, Begin)]:  # the last start, which ends well without the race
            served = record.find(BEFORE)
            assert served is not None and served.lost_starts == LIMITS.lost_starts - 1
            record, steps = settled(record, replace(here, workers={BEFORE: WorkerFacts(TPU, True, 100.0, "s")}))
        assert Begin(REF, JobKind.RACE) in steps

    assert boot == LIMITS.max_attempts
    served = record.find(BEFORE)
    assert served is not None
    assert (served.placement, served.given_up) == (TPU, ())


def test_a_better_placement_that_ends_the_board_once_is_dropped() -> None:
    """What serves needs no successor: one lost boot is enough."""
    better = RaceSummary(placement=TPU, ranked=(TPU, CPU), versions=dict(KERNEL), at=IDLE.now_s)
    board = Board(record_of(committed(CPU, TPU, successor=better)), TPU)

    assert not board.boot(runs_s=400.0)
    assert board.boot(runs_s=HOUR_S)
    assert (board.install().placement, board.install().successor, board.served_by()) == (CPU, None, {REF: CPU})


def _started(boot: str | None) -> AgentRecord:
    """Return a record of a version whose worker is being started in that run of the kernel."""
    record, _ = settled(
        record_of(committed(TPU, CPU)), replace(IDLE, stored={REF: StoredVersion(digest(2), 0, 0)}, boot=boot)
    )
    return record


@pytest.mark.parametrize(
    ("marked_in", "stopped", "started_in", "lost"),
    [
        ("a", False, "b", 1),
        ("a", False, "a", 0),  # the agent alone was started again
        ("a", True, "b", 0),  # the agent was asked to end
        (None, False, "b", 0),  # a board that does not tell its boots
        ("a", False, None, 0),
    ],
)
def test_what_counts_as_a_lost_start(marked_in: str | None, stopped: bool, started_in: str | None, lost: int) -> None:
    """Only the end of the kernel's run while the worker was starting, seen by the next run."""
    record = _started(marked_in)
    if stopped:
        record = boots.stopped(record)

    after = outcomes.recovered(record, LIMITS, started_in).find(REF)

    assert after is not None
    assert (after.lost_starts, after.starting) == (lost, None)


def test_a_good_start_begins_the_count_anew() -> None:
    """Losses count in a row: what serves for a minute after its start is sound."""
    board = Board(record_of(committed(TPU, CPU)))
    for _ in range(4):
        board.cut = True
        board.boot()
        board.boot()
        board.cut = False
        assert board.boot()

    assert (board.install().placement, board.install().given_up, board.install().lost_starts) == (TPU, (), 0)


def test_a_second_loss_of_a_winner_is_told_as_one() -> None:
    """The reason says that it was tried again, and no more that it will be in an hour."""
    board = Board(record_of(committed(TPU, CPU)), TPU)
    board.until_up()

    assert not board.boot(runs_s=2 * HOUR_S)
    assert board.boot()
    told = board.install().degraded
    assert told is not None
    assert told.reason == f"{TPU} was tried again, but its worker ended: the board ended while it was starting"
    assert board.install().given_up[0].times == 2


def test_a_version_on_its_second_trial_leaves_what_serves_alone() -> None:
    """While the version before serves, one that was given up is tried again beside it, and goes back after one loss."""
    board = Board(record_of(the_version_before(), committed(CPU)), (REF, CPU))
    board.until_up()

    assert not board.boot(runs_s=2 * HOUR_S)
    assert board.boot(runs_s=2 * HOUR_S)
    assert board.served_by() == {BEFORE: CPU}
    assert (board.install().state, board.install().given_up[0].times) == (_S.FAILED, 2)
