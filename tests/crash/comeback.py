"""What must hold after the agent was ended anywhere: checked on what is left, and by starting it again.

- the record can be read, and forgets nothing that the fleet was told
- identity and keys are what they were; no file that is in place is half there
- without a network, the version that served serves again
- every act of the story comes to its end within bounded time, and leaves exactly the files that are kept
- no report is older than the one before, no batch has two contents, no item comes twice or is lost untold
"""

from __future__ import annotations

from pathlib import Path

from crash.device import AFTER_POWER_CUT, BOOT, STATE, Device, adjusted
from crash.heard import Heard, Violation, demand
from crash.scenarios import Scenario, play
from device_rig import MODEL
from regatta_agent.core.installs import AgentRecord, Install
from regatta_agent.disk.store import Store
from regatta_protocol.codec import decode
from regatta_protocol.errors import RegattaError
from regatta_protocol.ids import digest_of_bytes, digest_of_file
from regatta_protocol.manifest import Manifest
from regatta_protocol.messages import InstallState

__all__ = ["check_end", "come_back", "has_ended", "look"]

_OFFLINE_S = 30.0  # by the fake clock: for starting to serve what is on disk
_ACT_S = 300.0
_LATER_S = 360_000.0  # the clock of a device that comes back never shows a time that it has had
_PLACED = (InstallState.PLACED, InstallState.ON_TRIAL, InstallState.COMMITTED)


def come_back(folder: Path, scenario: Scenario, seed: int, heard: Heard, *, power_cut: bool) -> None:
    """Start again on what is in the folder, and play the story to its end.

    Raises:
        Violation: with the promise that is broken.
    """
    before = look(folder / STATE, heard)

    with adjusted(lambda: device, AFTER_POWER_CUT if power_cut else BOOT):
        device = Device(folder, seed, heard.hear, outbox_bytes=scenario.outbox_bytes, later_s=_LATER_S)
        demand(device.has_identity(), "the identity has changed")
        scenario.prepare(device)
        device.broker.kill()
        device.start()
        served = before.serving(MODEL)
        serves = device.run(_OFFLINE_S, until=device.serves)
        demand(serves or served is None, f"no model serves after the restart; the record had {served}")
        device.broker.start()
        if heard.generation:
            device.want(heard.generation, heard.version)
        play(device, scenario.acts, heard.act, _ACT_S)
        check_end(device, scenario, heard)
        device.kill()


def look(state_dir: Path, heard: Heard) -> AgentRecord:
    """Check the folder as it was left; return the record that is in it.

    Raises:
        Violation: with the promise that is broken.
    """
    file = state_dir / "record.json"
    try:
        record = decode(AgentRecord, file.read_bytes()) if file.exists() else AgentRecord()
    except RegattaError as err:
        raise Violation(f"record.json cannot be read: {err}") from err
    installed = [install.version for install in record.all() if install.committed_at is not None]
    demand(max(installed, default=0) >= heard.committed, f"version {heard.committed} was reported and is forgotten")
    _check_files(state_dir, heard.damaged)
    for install in record.all():
        if install.state in _PLACED or install == _previous(record):
            _check_whole(state_dir, install, heard.damaged)
    return record


def check_end(device: Device, scenario: Scenario, heard: Heard) -> None:
    """Check what the whole story leaves.

    Raises:
        Violation: with the promise that is broken.
    """
    ended = {version: device.state(version) for version in scenario.ends}
    demand(has_ended(device, scenario), f"the versions ended {ended}")
    demand(device.has_sent_all(), "telemetry stays behind")
    missing = heard.missing()
    demand(len(missing) <= heard.dropped, f"items are lost, {heard.dropped} of them told: {sorted(missing)[:9]}")
    demand(device.has_identity(), "the identity has changed")
    state_dir = device.config.state_dir
    _check_files(state_dir, set())
    record = device.loop.record
    kept = [install for install in record.all() if install.state in _PLACED or install == _previous(record)]
    for install in kept:
        _check_whole(state_dir, install, set())
    manifests = [Store(state_dir).manifest(install.ref) for install in kept]
    wanted = {file.digest for manifest in manifests if manifest is not None for file in manifest.files()}
    extra = {path.name for path in (state_dir / "blobs").iterdir()} - wanted
    demand(not extra, f"files of no version are left over: {sorted(extra)}")
    left = [path.name for path in state_dir.rglob("*") if path.name.endswith(".tmp") or path.parent.name == "partial"]
    demand(not left, f"left over: {left}")


def has_ended(device: Device, scenario: Scenario) -> bool:
    """Return whether every version is in a state in which it may end."""
    return all(device.state(version) in states for version, states in scenario.ends.items())


def _previous(record: AgentRecord) -> Install | None:
    """Return the version that served before, which is kept while its model is wanted."""
    if record.desired_version(MODEL) is None:
        return None
    retired = [one for one in record.all() if one.state is InstallState.RETIRED and one.committed_at is not None]
    return max(retired, key=lambda one: one.committed_at or 0.0, default=None)


def _check_files(state_dir: Path, damaged: set[str]) -> None:
    """Every blob in place has its digest, and every manifest can be read."""
    for path in (state_dir / "blobs").glob("*"):
        demand(path.name in damaged or digest_of_file(path) == path.name, f"blob {path.name[:12]} has another digest")
    for path in (state_dir / "models").glob("*/*/manifest.json"):
        try:
            decode(Manifest, path.read_bytes())
        except RegattaError as err:
            raise Violation(f"a manifest cannot be read: {err}") from err


def _check_whole(state_dir: Path, install: Install, damaged: set[str]) -> None:
    """The version's manifest is the signed one, and all its files are here."""
    store = Store(state_dir)
    manifest = store.manifest(install.ref)
    what = f"{install.ref}, which is {install.state},"
    if manifest is None:
        raise Violation(f"{what} has no manifest")
    digest = digest_of_bytes(store.manifest_path(install.ref).read_bytes())
    demand(digest == install.manifest_digest, f"{what} has another manifest than the signed one")
    missing = [file.digest[:12] for file in store.missing(manifest) if file.digest not in damaged]
    demand(not missing, f"{what} lacks files {missing}")
