"""Checks the fleet's signed metadata on a device (TUF): what do they promise about these targets?

python-tuf's own client, over the files of one answer, with four things that it lacks:
- every file is written durably, and not at all when it is there already (flash wears);
- expiry is judged by the time that the agent gives, which never falls below the floor that it persists;
- each role's version is held against the agent's own high-water mark: when a power cut zeroes all local metadata,
  python-tuf alone would accept an old repository;
- the pinned root is always the anchor; local metadata that is damaged is fetched anew, never believed.

No target is downloaded here: the agent fetches it and compares length and SHA-256. Only the verifier's child process
imports this (python-tuf: 26 MB, 0.15 s).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from pathlib import Path

from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.api.metadata import Metadata, Root, Targets
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

from regatta_protocol.durable import read_bounded, shortage_of, write_durably
from regatta_protocol.errors import Expired, Misuse, RegattaError, Retryable, Untrusted
from regatta_provisioning.keys import make_private_folder
from regatta_provisioning.verifying import MetadataJob, VerifiedTarget, VerifyResult, refusal

__all__ = ["verify_metadata"]

_URL = "memory:///"
_MAX_ROOT_BYTES = 512_000  # as python-tuf's client allows


def verify_metadata(job: MetadataJob) -> VerifyResult:
    """Return what the metadata promise, or why they are refused.

    Raises:
        Misuse: when the pinned root is missing or damaged.
        Retryable: when the folder of metadata cannot be used.
    """
    updater = _open(job)
    try:
        targets = _refresh(updater, job)
        floor = _floor_after_rotation(updater, job)
        versions = updater.versions()
        _hold(versions, floor)
    except RegattaError as err:
        return refusal(err, updater.root_version)
    return VerifyResult(ok=True, targets=targets, versions={**floor, **versions}, root_version=updater.root_version)


def _open(job: MetadataJob) -> _DurableUpdater:
    """Return an updater anchored in the pinned root.

    Raises:
        Misuse: when the pinned root is missing or damaged.
        Retryable: when the disk does not take it.
    """
    trust_dir = Path(job.trust_dir)
    try:
        pinned = read_bounded(Path(job.root_path), _MAX_ROOT_BYTES)
        make_private_folder(trust_dir / "root_history")
        return _DurableUpdater(trust_dir, job.files, pinned, job.now)
    except FileNotFoundError as err:
        raise Misuse(f"the pinned root {job.root_path} is missing: enrol this device again with --force") from err
    except RepositoryError as err:
        raise Misuse(f"the pinned root {job.root_path} is damaged ({err}): enrol again with --force") from err
    except OSError as err:
        raise shortage_of(err, f"signed metadata in {trust_dir}") or Retryable(
            f"the folder of signed metadata {trust_dir} cannot be used: {err}"
        ) from err


def _refresh(updater: _DurableUpdater, job: MetadataJob) -> dict[str, VerifiedTarget]:
    """Return what the signed metadata promise about the job's targets.

    Raises:
        Untrusted: when they are not the fleet's, expired, rolled back, mixed, or do not know a target.
        Retryable: when a file is missing in the answer, or the disk does not take it.
    """
    try:
        updater.refresh()
        return {path: _promise(updater, path) for path in job.targets}
    except DownloadHTTPError as err:
        raise Retryable(f"the fleet's answer lacks {err}: ask again from root {updater.root_version} on") from err
    except DownloadLengthMismatchError as err:
        raise Untrusted(f"a file of the fleet's answer is over its limit: {err}") from err
    except DownloadError as err:
        raise Retryable(f"a file of the fleet's answer cannot be read: {err}") from err
    except (RepositoryError, OSError) as err:
        if isinstance(err, OSError):
            raise shortage_of(err, f"signed metadata in {job.trust_dir}") or Retryable(
                f"verified metadata cannot be kept in {job.trust_dir}: {err}"
            ) from err
        if updater.root_version < job.floor.get(Root.type, 0):
            raise _lost_roots(updater.root_version, job.floor[Root.type]) from err
        if isinstance(err, ExpiredMetadataError):
            raise Expired(
                f"the signed metadata are not valid any more ({err}) at {_moment(job.now):%Y-%m-%d %H:%M} UTC: "
                "the fleet has stopped signing, someone holds back what it signs, or this clock is wrong"
            ) from err
        raise Untrusted(f"the metadata are not what the fleet signed: {err}") from err


def _promise(updater: Updater, path: str) -> VerifiedTarget:
    target = updater.get_targetinfo(path)
    if target is None:
        raise Untrusted(f"the fleet has signed nothing called {path[:200]!r}")
    digest = target.hashes.get("sha256")
    if digest is None:
        raise Untrusted(f"{path[:200]!r} is signed without a SHA-256")
    return VerifiedTarget(length=target.length, sha256=digest)


def _floor_after_rotation(updater: _DurableUpdater, job: MetadataJob) -> dict[str, int]:
    """Return the high-water mark, without the roles whose keys the root has changed since it was taken.

    Their versions may start again (TUF specification 5.3.11): a thief of a key may have used up the high numbers,
    and only the root's keys can take the thief's key away.
    """
    floor = dict(job.floor)
    known = floor.get(Root.type, updater.root_version)
    if not updater.pinned_version <= known < updater.root_version:
        return floor
    before = updater.root_of_version(known)
    changed = {role for role in before.roles if set(before.roles[role].keyids) != set(updater.root.roles[role].keyids)}
    if changed & {"timestamp", "snapshot"}:
        changed |= {"timestamp", "snapshot"}
    if "targets" in changed:
        changed |= {role for role in floor if role not in ("root", "timestamp", "snapshot")}
    return {role: version for role, version in floor.items() if role == Root.type or role not in changed}


def _hold(versions: Mapping[str, int], floor: Mapping[str, int]) -> None:
    """Raise when a role is below the high-water mark."""
    if versions[Root.type] < floor.get(Root.type, 0):
        raise _lost_roots(versions[Root.type], floor[Root.type])
    for role, version in versions.items():
        if version < floor.get(role, 0):
            raise Untrusted(
                f"{role}.json has version {version}, but this device has seen {floor[role]}: "
                "an old state of the fleet was sent again"
            )


def _lost_roots(version: int, known: int) -> Retryable:
    return Retryable(f"this device has seen root {known} but has only {version} now: ask again from root {version} on")


class _DurableUpdater(Updater):
    """python-tuf's client, reading one answer of the fleet instead of a network. One per job.

    It overrides private methods of python-tuf; tests/unit/provisioning/test_metadata.py fails when a new version of
    it no longer calls them.
    """

    def __init__(self, trust_dir: Path, files: Mapping[str, str], pinned: bytes, now: float) -> None:
        super().__init__(str(trust_dir), _URL, fetcher=_AnswerFetcher(files), bootstrap=pinned)
        self.pinned_version = self._trusted_set.root.version
        self._trusted_set.reference_time = _moment(now)

    @property
    def root(self) -> Root:
        return self._trusted_set.root

    @property
    def root_version(self) -> int:
        return self._trusted_set.root.version

    def root_of_version(self, version: int) -> Root:
        """Return a root between the pinned one and the newest; only those that verified are in the folder then."""
        data = read_bounded(Path(self._dir, "root_history", f"{version}.root.json"), _MAX_ROOT_BYTES)
        return Metadata[Root].from_bytes(data).signed

    def versions(self) -> dict[str, int]:
        """Return the version of every role that was loaded and verified in this job."""
        roles = {role: self._trusted_set[role] for role in ("root", "timestamp", "snapshot")}
        loaded = {role: self._trusted_set[role] for role in self._loaded_targets()}
        return {role: signed.version for role, signed in {**roles, **loaded}.items()}

    def _loaded_targets(self) -> list[str]:
        names = [name.removesuffix(".json") for name in self._trusted_set.snapshot.meta]
        return [name for name in names if name in self._trusted_set and isinstance(self._trusted_set[name], Targets)]

    def _persist_file(self, filename: str, data: bytes) -> None:
        path = Path(filename)
        try:
            if path.stat().st_size == len(data) and path.read_bytes() == data:
                return
        except FileNotFoundError:
            pass
        write_durably(path, data)

    def _update_root_symlink(self) -> None:
        """Do nothing: only a client without a pinned root reads `root.json`, and a link cannot be made in one step."""


class _AnswerFetcher(FetcherInterface):
    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix(_URL)
        text = self._files.get(name)
        if text is None:
            raise DownloadHTTPError(name, 404)  # python-tuf's word for "there is no newer root"
        return iter((text.encode(),))


def _moment(now: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(now, dt.timezone.utc)
