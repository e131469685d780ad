"""What the fleet is told of each version, from the record and the workers: the `models` of a report. Pure."""

from __future__ import annotations

from regatta_agent.core.facts import Facts
from regatta_agent.core.installs import AgentRecord, Install
from regatta_protocol.messages import InstallState, ModelReport

__all__ = ["as_on_disk", "is_serving", "model_reports"]

_REPORTED = 256  # as many as a report may hold


def as_on_disk(record: AgentRecord, on_disk: AgentRecord, why: str) -> AgentRecord:
    """Return the part of `record` that a restart would come back to; each version that differs carries `why` as reason.

    A version that the disk does not know of yet is one that is wanted, and no more.
    """
    installs = {}
    for name, known in record.installs.items():
        kept = [(install, on_disk.find(install.ref)) for install in known]
        installs[name] = tuple(
            install if twin == install else (twin or _wanted(install)).model_copy(update={"reason": why})
            for install, twin in kept
        )
    return record.model_copy(update={"installs": installs, "generation": on_disk.generation})


def _wanted(install: Install) -> Install:
    return Install(name=install.name, version=install.version, rollout=install.rollout)


def model_reports(record: AgentRecord, facts: Facts) -> tuple[ModelReport, ...]:
    """Return a line for every version known, wanted ones and the last ones before them alike."""
    reports = [_report(install, is_serving(install, facts)) for install in record.all()]
    return tuple(reports[-_REPORTED:])


def is_serving(install: Install, facts: Facts) -> bool:
    """Return whether requests to the model's socket reach this version's worker."""
    worker = facts.workers.get(install.ref)
    serves = install.state in (InstallState.ON_TRIAL, InstallState.COMMITTED)
    return serves and worker is not None and worker.ready and facts.links.get(install.name) == worker.socket


def _report(install: Install, serving: bool) -> ModelReport:
    race, degraded = install.race, install.stand_in
    return ModelReport(
        name=install.name,
        version=install.version,
        state=install.state,
        serving=serving,
        reason=install.reason,
        opens_at=install.opens_at,
        agreement=install.agreement,
        rollout=install.rollout,
        attempt=install.attempt,
        placement=degraded.placement if degraded is not None else install.placement,
        degraded=degraded.reason if degraded is not None else None,
        accuracy=race.accuracy if race is not None else install.measured,
        latency=race.latency if race is not None else None,
        power=race.power if race is not None else None,
        basis=race.basis if race is not None else None,
    )
