"""What the agent remembers: every version it knows of, where each stands, and what the fleet last asked for.

Pure data; record.py keeps it on disk. The models are frozen: a change makes a new record, which is persisted before
anything is done about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, field_validator

from regatta_agent.core.batches import BatchRun
from regatta_agent.core.states import Event, next_state
from regatta_protocol.ids import DigestField, ModelName, ModelNameField, ModelRef
from regatta_protocol.messages import Assignment, InstallState, SignedAssignment
from regatta_protocol.policy import Policy
from regatta_protocol.values import Accuracy, Latency, Power
from regatta_protocol.wire import Wire

__all__ = ["AgentRecord", "Degradation", "GivenUp", "Install", "RaceSummary", "Starting"]

_MAX_INSTALLS = 16  # remembered per model; the oldest settled ones are forgotten first


class RaceSummary(Wire):
    """What a race decided, without every candidate's figures (those lie in races/)."""

    placement: str
    ranked: tuple[str, ...] = ()  # sound candidates, best first, the winner included: who takes over from whom
    accuracy: Accuracy | None = None
    latency: Latency | None = None
    power: Power | None = None
    max_trial_accuracy_drop: float = 0.05
    shadow_s: float = 0.0
    policy: Policy | None = None  # that the fleet had assigned when it was decided; None: the bundle's
    unmet: str | None = None  # why a policy assigned since then places nothing; the placement is from before
    versions: dict[str, str] = Field(default_factory=dict)  # of runtimes, drivers and kernel when it was run
    at: float | None = None  # seconds since 1970
    basis: str | None = None  # full or confirmed (RaceReport); None: an older agent's record


class Degradation(Wire):
    """Another candidate than the winner serves."""

    placement: str
    reason: str
    since: float  # seconds since 1970


class Starting(Wire):
    """A worker that may end the board: it is being started, or has not served for long (boots.py)."""

    placement: str
    boot: str  # which run of the kernel


class GivenUp(Wire):
    """A placement that is not started any more, because the board kept ending while it was starting."""

    placement: str
    reason: str
    times: int = Field(default=1, ge=1)  # given up, first and after it was tried again
    versions: dict[str, str] = Field(default_factory=dict)  # of runtimes, drivers and kernel with which the board ended


class Install(Wire):
    """One version of one model on this device."""

    name: ModelNameField
    version: int = Field(ge=1)
    state: InstallState = InstallState.ASSIGNED
    rollout: str | None = None
    trial_s: float = 5.0
    policy: Policy | None = None  # as assigned; None: the bundle's
    attempt: int = Field(default=0, ge=0)  # failures since it was assigned; bounded
    waits: int = Field(default=0, ge=0)  # for space or an answer, since it was assigned: no failures, so not bounded
    reason: str | None = None
    not_before: float | None = None  # seconds since 1970: do not try again earlier
    opens_at: float | None = None  # seconds since 1970: when the update window that it waits for opens
    full_at_bytes: int | None = None  # how much was free when the disk was found full: with more it is tried at once
    manifest_digest: DigestField | None = None  # from the signed metadata
    manifest_bytes: int | None = None
    bad_digests: tuple[DigestField, ...] = ()  # files that arrived with another digest, once per time
    race: RaceSummary | None = None
    measured: Accuracy | None = None  # the best that any candidate reached in the last race, placed or not
    deaths: int = Field(default=0, ge=0)  # of its worker, in a row
    placement: str | None = None  # what its worker is started for: the race's winner until that kept ending it
    degraded: Degradation | None = None
    guarded: bool = False  # the winner ended its worker so often that it runs in a process of its own from now on
    rerace: str | None = None  # why a new race is wanted
    reraced_at: float | None = None  # when one was last begun beside the serving worker
    racing_again: bool = False
    successor: RaceSummary | None = None  # a new race's, whose winner takes over once its worker is ready
    retried: tuple[float, ...] = ()  # when the winner was retried within the last day, in seconds since 1970
    agreement: str | None = None  # in words, how it answered live requests in the shadow of the version before
    committed_at: float | None = None  # when it passed its trial, first or last
    starting: Starting | None = None  # written before a worker starts that has served before
    lost_starts: int = Field(default=0, ge=0)  # runs of the kernel in a row that ended while `placement` was starting
    given_up: tuple[GivenUp, ...] = ()

    @field_validator("state")
    @classmethod
    def _known(cls, state: InstallState) -> InstallState:
        if not state.known:  # there would be no way out of it: it is better to begin anew
            raise ValueError(f"the state {state} is one of a newer agent")
        return state

    @property
    def ref(self) -> ModelRef:
        return ModelRef(self.name, self.version)

    @property
    def tried_after_s(self) -> float:
        """For how long its worker has been ready when the trial is over: it may have been in the shadow before."""
        return self.trial_s + (self.race.shadow_s if self.race is not None and self.agreement is not None else 0.0)

    @property
    def outdated(self) -> bool:
        """Whether its placement was chosen by another policy than the one that is assigned now."""
        return self.race is not None and self.race.policy != self.policy

    @property
    def stand_in(self) -> Degradation | None:
        """What serves in place of the winner, while the version has a worker at all."""
        has_worker = self.state in (InstallState.PLACED, InstallState.ON_TRIAL, InstallState.COMMITTED)
        return self.degraded if has_worker else None

    @property
    def winner(self) -> str | None:
        """The race's winner."""
        return self.race.placement if self.race is not None else self.placement


class AgentRecord(Wire):
    """The state of the agent. `schema_version` grows when an older agent could not read it."""

    schema_version: int = 1
    device: str = ""
    generation: int = Field(default=0, ge=0)
    signed: SignedAssignment | None = None  # as received, for the record
    assignment: Assignment | None = None  # its verified content
    installs: dict[ModelNameField, tuple[Install, ...]] = Field(default_factory=dict)
    batch: tuple[BatchRun, ...] = ()  # the fleet's batch jobs, oldest first
    role_versions: dict[str, int] = Field(default_factory=dict)  # high-water mark of the signed metadata's roles
    root_version: int = Field(default=1, ge=1)  # of the metadata's root: what to ask the fleet for next
    time_floor: float = 0.0  # when the newest assignment was signed, so past for sure; boards have no clock battery
    report_sequence: int = Field(default=0, ge=0)
    bytes_received: int = Field(default=0, ge=0)

    def all(self) -> Iterator[Install]:
        """Yield every install, model by model, in the order they were first assigned."""
        for installs in self.installs.values():
            yield from installs

    def find(self, ref: ModelRef) -> Install | None:
        """Return the install, or None when nothing is known of it."""
        return next((install for install in self.installs.get(ref.name, ()) if install.version == ref.version), None)

    def in_state(self, name: ModelName, *states: InstallState) -> Install | None:
        """Return the last install of the model in one of the states."""
        found = [install for install in self.installs.get(name, ()) if install.state in states]
        return found[-1] if found else None

    def serving(self, name: ModelName) -> Install | None:
        """Return the version that shall answer requests: the one on trial, else the committed one."""
        return self.in_state(name, InstallState.ON_TRIAL) or self.in_state(name, InstallState.COMMITTED)

    def replaced(self, install: Install) -> Install | None:
        """Return the committed version that `install` would replace."""
        committed = self.in_state(install.name, InstallState.COMMITTED)
        return committed if committed is not None and committed.version != install.version else None

    def desired_version(self, name: ModelName) -> int | None:
        """Return the version that the fleet wants, or None when it does not want the model."""
        if self.assignment is None or name not in self.assignment.models:
            return None
        return self.assignment.models[name].version

    def with_install(self, install: Install) -> AgentRecord:
        """Return the record with `install` added or put in place of what was known of that version."""
        known = self.installs.get(install.name, ())
        if any(other.version == install.version for other in known):
            installs = tuple(install if other.version == install.version else other for other in known)
        else:
            installs = (*known, install)
        while len(installs) > _MAX_INSTALLS:
            forgotten = next((one for one in installs if one.state in _FORGETTABLE), None)
            if forgotten is None:
                break
            installs = tuple(one for one in installs if one is not forgotten)
        return self.model_copy(update={"installs": {**self.installs, install.name: installs}})

    def advanced(self, ref: ModelRef, event: Event, **changes: Any) -> AgentRecord:  # noqa: ANN401 - fields of Install
        """Return the record after `event` happened to `ref`, with `changes` of its other fields.

        A step forward clears the reason and the wait unless `changes` give them.

        Raises:
            Misuse: when the table of states has no such step; this record is unchanged.
        """
        install = self.find(ref)
        state = next_state(install.state if install is not None else InstallState.RETIRED, event)
        install = install or Install(name=ref.name, version=ref.version)
        update: Mapping[str, Any] = {
            "state": state,
            "reason": None,
            "not_before": None,
            "opens_at": None,
            "full_at_bytes": None,
            **changes,
        }
        return self.with_install(install.model_copy(update=update))

    def changed(self, ref: ModelRef, **changes: Any) -> AgentRecord:  # noqa: ANN401 - fields of Install
        """Return the record with fields of `ref` changed and its state kept; an unknown `ref` changes nothing."""
        install = self.find(ref)
        return self if install is None else self.with_install(install.model_copy(update=changes))

    def put_off(
        self,
        ref: ModelRef,
        event: Event | None,
        reason: str,
        not_before: float | None,
        **changes: Any,  # noqa: ANN401 - fields of Install
    ) -> AgentRecord:
        """Return the record in which `ref` waits for a time, after `event` or, without one, in the state that it is in.

        An earlier want of space is no reason to go on sooner, unless `changes` say so.
        """
        changes = {"reason": reason, "not_before": not_before, "full_at_bytes": None, **changes}
        return self.changed(ref, **changes) if event is None else self.advanced(ref, event, **changes)


_FORGETTABLE = (InstallState.FAILED, InstallState.ROLLED_BACK, InstallState.RETIRED)
