"""A record and facts for tests of the planner: installs, what lies on disk, and a plan carried on until it settles."""

from __future__ import annotations

from regatta_agent.core import outcomes
from regatta_agent.core.facts import Advance, Facts, Limits, Revise, StoredVersion
from regatta_agent.core.installs import AgentRecord, Install, RaceSummary
from regatta_agent.core.planner import plan
from regatta_protocol.ids import DeviceId, Digest, ModelName, ModelRef, digest_of_bytes
from regatta_protocol.measurement import BoardFacts, CandidateResult, Outcome, RaceReport
from regatta_protocol.messages import Assignment, DesiredModel, InstallState, SignedAssignment
from regatta_protocol.values import Accuracy, Latency

NAME = ModelName("digits")
LIMITS = Limits(disk_reserve_bytes=0, rerace_interval_s=2000.0)
IDLE = Facts(now_s=1000.0, online=True, free_bytes=10**9)
CANDIDATE = "litert/int8/xnnpack/t1"


def digest(version: int) -> Digest:
    return digest_of_bytes(b"%d" % version)


def wanting(
    record: AgentRecord,
    version: int | None,
    rollout: str | None = "r",
    *,
    window: tuple[str, ...] = (),
    **fields: object,
) -> AgentRecord:
    """Return the record after the fleet asked for `version`; `fields` are more of the DesiredModel."""
    wanted = {"version": version, "rollout": rollout, **fields}
    models = {} if version is None else {NAME: DesiredModel.model_validate(wanted)}
    assignment = Assignment(
        fleet="f", device=DeviceId("d"), generation=record.generation + 1, issued_at=0.0, models=models,
        update_window=window,
    )  # fmt: skip
    return outcomes.take_up(record, SignedAssignment(payload="", key_id="k", signature="s"), assignment)


def settled(record: AgentRecord, facts: Facts, limits: Limits = LIMITS) -> tuple[AgentRecord, list[object]]:
    """Return the record after all recorded steps, and the other steps of the last plan."""
    for _ in range(50):
        steps = plan(record, facts, limits)
        recorded = [step for step in steps if isinstance(step, Advance | Revise)]
        if not recorded:
            return record, list(steps)
        for step in recorded:
            if isinstance(step, Advance):
                record = record.advanced(step.ref, step.event, **step.changes)
            else:
                record = record.changed(step.ref, **step.changes)
    raise AssertionError(f"the plan does not settle: {recorded}")


def an_install(version: int, state: InstallState, accuracy: float | None = None, **fields: object) -> Install:
    measured = Accuracy(correct=round(accuracy * 100), total=100) if accuracy is not None else None
    race = RaceSummary(placement=CANDIDATE, ranked=(CANDIDATE,), accuracy=measured)
    values = {"manifest_digest": digest(version), "race": race, "placement": CANDIDATE, "rollout": "r", **fields}
    return Install(name=NAME, version=version, state=state, **values)


def on_disk(*versions: int, missing_bytes: int = 0) -> dict[ModelRef, StoredVersion]:
    missing = 1 if missing_bytes else 0
    return {ModelRef(NAME, v): StoredVersion(digest(v), missing, missing_bytes) for v in versions}


def a_report(version: int, **p50_us: float | Outcome) -> RaceReport:
    """Return a race in which each delegate took so long, or ended so; the fastest is placed."""
    results = tuple(
        CandidateResult(
            id=f"litert/int8/{delegate}/t1", runtime="litert", variant="int8", delegate=delegate, threads=1,
            outcome=figure if isinstance(figure, Outcome) else Outcome.MEASURED,
            latency=None if isinstance(figure, Outcome) else Latency(
                samples=1, p50_us=figure, p90_us=figure, p99_us=figure
            ),
        )
        for delegate, figure in p50_us.items()
    )  # fmt: skip
    best = min((one for one in results if one.latency), key=lambda one: one.latency.p50_us if one.latency else 0.0)
    return RaceReport(
        model=NAME, version=version, board=BoardFacts(), candidates=results, placement=best.id, reason="fastest",
        duration_s=1.0,
    )  # fmt: skip
