"""What the crash lab interrupts: short stories of one device, each a row of acts, every act one wish of the fleet.

An act is begun again when the device comes back in it, so it may be begun twice and must end the same. `given` acts
have happened, undisturbed, before the first point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from crash.device import RACE_KEY, STARTED, Device
from crash.heard import Violation
from device_rig import MODEL
from regatta_agent.serving.events import Drifted, Recovered
from regatta_protocol.messages import InstallState
from regatta_protocol.plain import to_json

__all__ = ["SCENARIOS", "Act", "Scenario", "play"]

_S = InstallState
_SETTLED_S = 15.0
_RESTART_S = 2.0  # by systemd, at the soonest (regatta-agent.service)
_WINDOWS = 90  # half as many again as one batch holds


def _nothing(_device: Device) -> None:
    return


@dataclass(frozen=True)
class Act:
    """One wish, and when it is fulfilled."""

    begin: Callable[[Device], None]
    done: Callable[[Device], bool]
    meanwhile: Callable[[Device], None] = _nothing  # at every look, before `done`


@dataclass(frozen=True)
class Scenario:
    """One story."""

    name: str
    about: str
    acts: tuple[Act, ...]
    ends: Mapping[int, tuple[InstallState, ...]]  # version -> the states in which it may end
    given: tuple[Act, ...] = ()
    outbox_bytes: int = 1_000_000
    prepare: Callable[[Device], None] = _nothing  # the world before the agent starts, each time


def play(device: Device, acts: tuple[Act, ...], first: int, limit_s: float) -> None:
    """Play the acts from the one with number `first`; each must come to its end within `limit_s` of its clock.

    Raises:
        Violation: when one does not.
    """
    for number in range(first, len(acts)):
        act = acts[number]
        device.tell("act", number)
        act.begin(device)

        def done(act: Act = act) -> bool:
            act.meanwhile(device)
            return act.done(device)

        if not device.run(limit_s, until=done):
            states = {version: f"{device.state(version)} {device.reason(version)}" for version in (1, 2, 3)}
            raise Violation(f"act {number} does not end within {limit_s:g} s: {states}")
        device.run(2.0)
    device.run(_SETTLED_S)


def _want(
    generation: int,
    version: int,
    meanwhile: Callable[[Device], None] = _nothing,
    done: Callable[[Device], bool] | None = None,
) -> Act:
    """Ask for a version until it is committed, or until `done`."""
    return Act(
        lambda device: device.want(generation, version),
        done or (lambda device: device.committed(version)()),
        meanwhile,
    )


def _interrupt_download(device: Device) -> None:
    """Cut the connection in one download, and start the agent again in the middle of it."""
    downloading = device.state(2) == _S.DOWNLOADING
    if device.once("first look", downloading):
        return
    if device.once("cut", downloading):
        device.cut()
    elif device.once("restart", downloading):
        device.restart()


def _worse(device: Device) -> None:
    """Version 2 is less accurate, or, with even seeds, its worker dies on trial."""
    device.accuracy = {1: 0.98, 2: 0.41 if device.seed % 2 else 0.98, 3: 0.98}


def _kill_trial(device: Device) -> None:
    if device.state(2) == _S.ON_TRIAL and device.seed % 2 == 0:
        for child in device.launcher.alive(f"worker:{MODEL}-2-"):
            child.end(-11)


def _beyond(version: int, *states: InstallState) -> Callable[[Device], bool]:
    return lambda device: device.state(version) not in ("unknown", *states)


def _slow_races(device: Device) -> None:
    """A race asks the fleet for a result first, which does not answer: it is under way for seconds."""
    device.race_key = device.launcher.race_key = RACE_KEY
    device.fleet.answer_race = lambda _request: None


_BEFORE_RACE = (_S.ASSIGNED, _S.AUTHORIZED, _S.DOWNLOADING, _S.VERIFIED)
_BEFORE_FILES = (_S.ASSIGNED, _S.AUTHORIZED)


def _superseded(device: Device) -> bool:
    """Version 2 is racing or, with even seeds, downloading; or it is further already."""
    return _beyond(2, *(_BEFORE_RACE if device.seed % 2 else _BEFORE_FILES))(device)


def _served(device: Device) -> bool:
    return device.committed(1)()


def _withdraw(generation: int) -> Act:
    return Act(
        lambda device: device.want(generation, None),
        lambda device: device.state(1) == _S.RETIRED and not device.launcher.alive("worker:"),
    )


def _short_of_space(device: Device) -> None:
    device.capacity_bytes = 4096


def _wait_for_space(generation: int, version: int) -> Act:
    def begin(device: Device) -> None:
        _short_of_space(device)
        device.want(generation, version)

    return Act(begin, lambda device: "free some space" in device.reason(version))


def _space_again(generation: int, version: int) -> Act:
    def begin(device: Device) -> None:
        device.capacity_bytes = None
        device.want(generation, version)

    return Act(begin, lambda device: device.committed(version)())


def _tell_windows(count: int, *, offline: bool) -> Callable[[Device], None]:
    def tell(device: Device) -> None:
        if device.serves() and device.told_windows < count:
            if offline and device.once("offline"):
                device.broker.kill()
            for _ in range(5):
                device.serve_window()
            device.told_windows += 5

    return tell


def _all_told(count: int) -> Callable[[Device], bool]:
    return lambda device: device.told_windows >= count


def _all_sent(count: int) -> Callable[[Device], bool]:
    return lambda device: device.told_windows >= count and device.has_sent_all()


def _begin_windows(device: Device) -> None:
    device.told_windows = 0
    device.broker.start()


def _kill_worker(device: Device) -> None:
    if device.state(1) == _S.COMMITTED and device.placement(1) == STARTED[0]:
        for child in device.launcher.alive("worker:"):
            child.end(1, "Illegal instruction")


def _say_recovered(device: Device) -> None:
    if device.placement(1) == STARTED[1]:
        for child in device.launcher.alive("worker:")[:1]:
            child.say(to_json(Recovered(placement=STARTED[0], retried=(device.clock.wall(),))))


def _drift(device: Device) -> None:
    """Much later, another placement is faster, and the worker notices that its own is not what it was."""
    device.fastest = STARTED[1]
    device.clock.pass_by(7 * 3600.0)


def _say_drifted(device: Device) -> None:
    if device.placement(1) == STARTED[0]:
        for child in device.launcher.alive("worker:")[:1]:
            child.say(to_json(Drifted(placement=STARTED[0], expected_us=50.0, found_us=90.0)))


def _placed(placement: str) -> Callable[[Device], bool]:
    return lambda device: device.placement(1) == placement


def _tamper_once(device: Device) -> None:
    """The first tries at version 2's model bring other bytes."""
    wrong = device.manifests[1].variants[0].file.digest
    device.fleet.tamper = lambda get, data: (
        bytes(len(data)) if get.digest == wrong and device.install(2).attempt == 0 else data
    )
    device.want(2, 2)


def _damage_previous(device: Device) -> None:
    """While the agent is down, version 1's model, a race's report and a kept result lose their ends."""
    state = device.config.state_dir
    digest = device.manifests[0].variants[0].file.digest
    damaged = [state / "blobs" / digest, state / "races" / f"{MODEL}-1.json", *(state / "priors").glob("*.json")]
    if device.state(1) == _S.RETIRED and device.once("damage"):
        device.kill()
        device.tell("damaged", digest)
        with device.forgiven():
            for path in damaged:
                if path.exists():
                    path.write_bytes(path.read_bytes()[:-7])
        device.make()
        device.begin()
    device.want(3, 1)


def _damage_identity(device: Device) -> None:
    """While the agent is down, its key and its certificate lose their ends, and its name and the fleet's are gone."""
    if device.once("damage"):
        device.kill()
        with device.forgiven():
            for name in ("key.pem", "cert.pem"):
                path = device.identity_folder / name
                path.write_bytes(path.read_bytes()[:-7])
            (device.identity_folder / "identity.json").unlink(missing_ok=True)
        device.clock.pass_by(_RESTART_S)
        device.make()
        device.begin()


def _own_results(device: Device) -> None:
    device.race_key = device.launcher.race_key = RACE_KEY


_ONE = (_want(1, 1),)
_COMMITTED, _RETIRED, _ROLLED_BACK = (_S.COMMITTED,), (_S.RETIRED,), (_S.ROLLED_BACK,)

SCENARIOS = {
    one.name: one
    for one in (
        Scenario("install", "the first version arrives", _ONE, {1: _COMMITTED}),
        Scenario("update", "version 1 to version 2", (_want(2, 2),), {1: _RETIRED, 2: _COMMITTED}, _ONE),
        Scenario(
            "resume", "a download is cut, and goes on after a restart in its middle",
            (_want(2, 2, _interrupt_download),), {1: _RETIRED, 2: _COMMITTED}, _ONE,
        ),
        Scenario(
            "rollback", "version 2 fails, the way back, then version 3",
            (
                _want(2, 2, _kill_trial, lambda device: device.state(2) == _S.ROLLED_BACK and device.serving() == 1),
                _want(3, 3),
            ),
            {1: _RETIRED, 2: _ROLLED_BACK, 3: _COMMITTED}, _ONE, prepare=_worse,
        ),
        Scenario(
            "supersede", "version 3 is wanted while version 2 downloads or races",
            (_want(2, 2, done=_superseded), _want(3, 3)),
            {1: _RETIRED, 2: _RETIRED, 3: _COMMITTED}, _ONE, prepare=_slow_races,
        ),
        Scenario(
            "withdraw", "the model is wanted no more, then again",
            (_withdraw(2), _want(3, 1)), {1: _COMMITTED}, _ONE,
        ),
        Scenario(
            "collect", "version 3 waits for space; what is no longer needed is deleted",
            (_wait_for_space(3, 3), _space_again(4, 3)),
            {1: _RETIRED, 2: _RETIRED, 3: _COMMITTED}, (_want(1, 1), _want(2, 2)),
        ),
        Scenario(
            "outbox", "telemetry piles up offline, the oldest is dropped, the rest is sent",
            (
                Act(_begin_windows, _all_told(_WINDOWS), _tell_windows(_WINDOWS, offline=True)),
                Act(_begin_windows, _all_sent(20), _tell_windows(20, offline=False)),
            ),
            {1: _COMMITTED}, _ONE, outbox_bytes=12_000,
        ),
        Scenario(
            "failover", "the winner keeps dying, is taken back, and loses a new race",
            (
                Act(_nothing, _placed(STARTED[1]), _kill_worker),
                Act(_nothing, _placed(STARTED[0]), _say_recovered),
                Act(_drift, _placed(STARTED[1]), _say_drifted),
            ),
            {1: _COMMITTED}, _ONE,
        ),
        Scenario(
            "reuse", "files arrive damaged, lie damaged, and results of races are used again",
            (
                Act(_tamper_once, lambda device: device.committed(2)()),
                Act(_damage_previous, lambda device: device.committed(1)()),
            ),
            {1: _COMMITTED, 2: _RETIRED}, _ONE, prepare=_own_results,
        ),
        Scenario(
            "identity", "the certificate is renewed, and later files of the identity lie damaged",
            (Act(Device.renew_certificate, _served), Act(_damage_identity, _served)), {1: _COMMITTED}, _ONE,
        ),
    )
}  # fmt: skip
