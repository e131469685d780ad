"""The fleet's signed metadata (TUF, https://theupdateframework.github.io/specification/latest/), authority side.

What is where, below one folder: `keys/{role}-{key id}.pem` (private, 0600) and `metadata/`, which holds every root
ever signed and otherwise only what `timestamp.json` leads to. Roles: root (one or two keys, all of which must sign),
targets (signs the list of bins, and each bin), snapshot and timestamp (online). Targets lie in 32 hashed bins, made
when first needed, so that what a device fetches stays small with thousands of versions. Consistent snapshots are on:
a file that a timestamp led to is never rewritten.

Every change writes new files first and `timestamp.json` last: a crash in between leaves the old state, whole, and the
same call again completes it. The keys of root and targets may be taken away (offline); a call that needs one then
raises Misuse, everything else goes on.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    Delegations,
    Key,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from regatta_protocol.durable import read_bounded, write_durably
from regatta_protocol.errors import Misuse, Rejected
from regatta_provisioning.keys import make_private_folder, read_ed25519_key, write_private_key

__all__ = ["MetadataRepository"]

logger = logging.getLogger(__name__)

_DAYS = {"root": 365, "targets": 90, "snapshot": 7, "timestamp": 7}
_BIN_BITS = 5  # 10,000 versions in 32 bins: 313 a bin, about 15 kB compressed, well inside one answer of 64 KiB
_BIN_PREFIX = "bin"
_MAX_FILE_BYTES = 5_000_000  # as python-tuf's client allows for targets
_MAX_ROOTS_PER_ANSWER = 48  # of the 64 files of an answer; a device further behind asks again
_SERIALIZER = JSONSerializer(compact=True)

S = TypeVar("S", Root, Targets, Snapshot, Timestamp)


class MetadataRepository:
    """The metadata of one fleet. Safe to call from several threads; one process owns the folder."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self._metadata = folder / "metadata"
        self._keys = folder / "keys"
        self._clock = clock
        self._lock = threading.RLock()

    @classmethod
    def create(cls, folder: Path, *, root_keys: int = 1, clock: Callable[[], float] = time.time) -> MetadataRepository:
        """Return the repository in `folder`, made new where there is none or it was left unfinished.

        Args:
            folder: Gets `keys/` and `metadata/`.
            root_keys: 1 or 2; with 2, both must sign a new root, so that one stolen medium is not enough.
            clock: Seconds since 1970.
        """
        if root_keys not in (1, 2):
            raise Misuse(f"a root of {root_keys} keys is not offered: choose 1 or 2")
        repository = cls(folder, clock)
        if not repository._path("timestamp").exists():
            repository._initialize(root_keys)
        return cls.load(folder, clock=clock)

    @classmethod
    def load(cls, folder: Path, *, clock: Callable[[], float] = time.time) -> MetadataRepository:
        """Return the repository in `folder`, after completing what a crash interrupted.

        Raises:
            Misuse: when there is none, or its files are damaged.
        """
        repository = cls(folder, clock)
        if not repository._path("timestamp").exists():
            raise Misuse(f"there is no signed metadata in {folder}: create the fleet first")
        with repository._lock:
            repository._complete()
        return repository

    @property
    def root_json(self) -> str:
        """The newest root: what a device that enrols now shall pin."""
        with self._lock:
            return self._text(f"{self._root_version()}.root")

    def add_target(self, path: str, data: bytes) -> None:
        """Promise that the target `path` has exactly the bytes `data`. May be repeated.

        Raises:
            Rejected: when other bytes were promised for this path: a version never changes.
            Misuse: when the key of targets is not here.
        """
        with self._lock:
            name = self._bin_of(path)
            snapshot = self._snapshot()
            version = self._listed(snapshot, name)
            role = Targets(expires=self._expiry("targets")) if version is None else self._load(name, Targets, version)
            target = TargetFile.from_data(path, data, ["sha256"])
            known = role.targets.get(path)
            if known is not None:
                if known.hashes != target.hashes or known.length != target.length:
                    raise Rejected(f"{path} is signed already with other content: publish it as a new version")
                return
            role.targets[path] = target
            self._commit_targets(snapshot, {name: role})
            logger.info("event=target_signed path=%s role=%s", path, name)

    def files_for(self, target: str, root_version: int) -> dict[str, str]:
        """Return every file that a device with root `root_version` needs to verify `target`: name -> exact text.

        Raises:
            Rejected: when there is no such target.
        """
        with self._lock:
            snapshot = self._snapshot()
            name = self._bin_of(target)
            version = self._listed(snapshot, name)
            if version is None or target not in self._load(name, Targets, version).targets:
                raise Rejected(f"there is no signed target {target[:200]!r} in this fleet")
            newest = self._root_version()
            first = max(1, root_version + 1)
            names = [f"{number}.root" for number in range(first, min(newest, first + _MAX_ROOTS_PER_ANSWER - 1) + 1)]
            names += ["timestamp", f"{snapshot.version}.snapshot"]
            names += [f"{snapshot.meta['targets.json'].version}.targets", f"{version}.{name}"]
            return {f"{name}.json": self._text(name) for name in names}

    def refresh_online(self) -> tuple[str, ...]:
        """Sign anew whatever is past half of its life and whose key is here; call it now and then.

        Returns:
            One sentence for the operator about each thing that needs a key that is not here. Empty when all is well.
        """
        with self._lock:
            problems: list[str] = []
            if self._is_old(self._root(), "root"):
                try:
                    self._commit_root(self._root())
                except Misuse as err:
                    problems.append(f"root.json expires {self._root().expires:%Y-%m-%d}: {err}")
            snapshot = self._snapshot()
            old: dict[str, Targets] = {}
            for file_name, meta in sorted(snapshot.meta.items()):
                name = file_name.removesuffix(".json")
                role = self._load(name, Targets, meta.version)
                if self._is_old(role, "targets"):
                    old[name] = role
            try:
                if old:
                    self._commit_targets(snapshot, old)
            except Misuse as err:
                soonest = min(role.expires for role in old.values())
                problems.append(f"{len(old)} files of targets expire from {soonest:%Y-%m-%d} on: {err}")
            timestamp = self._load("timestamp", Timestamp)
            if self._is_old(timestamp, "timestamp") or self._is_old(self._snapshot(), "snapshot"):
                self._commit_snapshot(self._snapshot())
            return tuple(problems)

    def rotate_online_keys(self) -> None:
        """Replace the keys of snapshot and timestamp, as after their theft; devices follow by themselves.

        Raises:
            Misuse: when a key of root is not here.
        """
        with self._lock:
            root = self._root()
            for role in ("snapshot", "timestamp"):
                for key_id in list(root.roles[role].keyids):
                    root.revoke_key(key_id, role)
                root.add_key(self._new_key(role), role)
            self._commit_root(root)
            self._complete()

    def _initialize(self, root_keys: int) -> None:
        make_private_folder(self._keys)
        make_private_folder(self._metadata)
        root = Root(expires=self._expiry("root"), consistent_snapshot=True)
        for role in ("root", "targets", "snapshot", "timestamp"):
            wanted = root_keys if role == "root" else 1
            found = sorted(self._keys.glob(f"{role}-*.pem"))[:wanted]  # of a creation that was interrupted
            signers = [_read_signer(path) for path in found]
            for key in [*(signer.public_key for signer in signers), *self._new_keys(role, wanted - len(signers))]:
                root.add_key(key, role)
        root.roles["root"].threshold = root_keys
        self._write("1.root", root, root.roles["root"].keyids, "root")
        targets_key = root.keys[root.roles["targets"].keyids[0]]
        targets = Targets(expires=self._expiry("targets"))
        targets.delegations = Delegations({}, succinct_roles=SuccinctRoles([], 1, _BIN_BITS, _BIN_PREFIX))
        targets.add_key(targets_key)
        self._write("1.targets", targets, [targets_key.keyid], "targets")
        snapshot = Snapshot(expires=self._expiry("snapshot"), meta={"targets.json": MetaFile(1)})
        self._write("1.snapshot", snapshot, root.roles["snapshot"].keyids, "snapshot")
        timestamp = Timestamp(expires=self._expiry("timestamp"), snapshot_meta=MetaFile(1))
        self._write("timestamp", timestamp, root.roles["timestamp"].keyids, "timestamp")

    def _complete(self) -> None:
        """Sign snapshot and timestamp anew when a rotation of their keys ended after the root was written."""
        root = self._root()
        timestamp = self._read("timestamp", Timestamp)
        snapshot = self._read(f"{timestamp.signed.snapshot_meta.version}.snapshot", Snapshot)
        try:
            root.verify_delegate("timestamp", timestamp.signed_bytes, timestamp.signatures)
            root.verify_delegate("snapshot", snapshot.signed_bytes, snapshot.signatures)
        except RepositoryError:
            self._commit_snapshot(snapshot.signed)

    def _commit_targets(self, snapshot: Snapshot, roles: dict[str, Targets]) -> None:
        key_ids = self._root().roles["targets"].keyids
        for name, role in roles.items():
            listed = self._listed(snapshot, name)
            role.version = 1 if listed is None else listed + 1
            role.expires = self._expiry("targets")
            self._write(f"{role.version}.{name}", role, key_ids, "targets")
            snapshot.meta[f"{name}.json"] = MetaFile(role.version)
        self._commit_snapshot(snapshot)

    def _commit_snapshot(self, snapshot: Snapshot) -> None:
        root = self._root()
        timestamp = self._load("timestamp", Timestamp)
        snapshot.version = timestamp.snapshot_meta.version + 1
        snapshot.expires = self._expiry("snapshot")
        self._write(f"{snapshot.version}.snapshot", snapshot, root.roles["snapshot"].keyids, "snapshot")
        timestamp.version += 1
        timestamp.expires = self._expiry("timestamp")
        timestamp.snapshot_meta = MetaFile(snapshot.version)
        self._write("timestamp", timestamp, root.roles["timestamp"].keyids, "timestamp")
        self._remove_unreferenced(snapshot)

    def _commit_root(self, root: Root) -> None:
        """Sign `root` as the next version, by the keys of the newest root and its own (they are the same keys)."""
        root.version = self._root_version() + 1
        root.expires = self._expiry("root")
        self._write(f"{root.version}.root", root, root.roles["root"].keyids, "root")

    def _remove_unreferenced(self, snapshot: Snapshot) -> None:
        kept = {f"{meta.version}.{name}" for name, meta in snapshot.meta.items()}
        kept |= {"timestamp.json", f"{snapshot.version}.snapshot.json"}
        for path in self._metadata.glob("*.json"):
            if path.name not in kept and not path.name.endswith(".root.json"):
                path.unlink(missing_ok=True)  # not durable on purpose: a file that comes back is removed next time

    def _snapshot(self) -> Snapshot:
        return self._load("snapshot", Snapshot, self._load("timestamp", Timestamp).snapshot_meta.version)

    def _root(self) -> Root:
        return self._load("root", Root, self._root_version())

    def _root_version(self) -> int:
        numbers = [path.name.split(".")[0] for path in self._metadata.glob("*.root.json")]
        versions = [int(number) for number in numbers if number.isdigit()]
        if not versions:
            raise Misuse(f"{self._metadata} holds no root: put it back from your backup")
        return max(versions)

    def _load(self, name: str, kind: type[S], version: int | None = None) -> S:
        """Return what the file of a role says; the file is our own, so its signature is not checked here."""
        return self._read(name if version is None else f"{version}.{name}", kind).signed

    def _read(self, name: str, kind: type[S]) -> Metadata[S]:
        try:
            metadata = Metadata[S].from_bytes(self._text(name).encode())
        except RepositoryError as err:
            raise Misuse(f"{self._path(name)} is damaged ({err}): put it back from your backup") from err
        if not isinstance(metadata.signed, kind):
            raise Misuse(f"{self._path(name)} is of type {metadata.signed.type}: put it back from your backup")
        return metadata

    def _text(self, name: str) -> str:
        path = self._path(name)
        try:
            return read_bounded(path, _MAX_FILE_BYTES).decode()
        except (FileNotFoundError, UnicodeDecodeError) as err:
            raise Misuse(f"{path} is missing or damaged: put the folder back from your backup") from err

    def _write(self, name: str, signed: S, key_ids: Iterable[str], role: str) -> None:
        metadata = Metadata(signed)
        for key_id in key_ids:
            metadata.sign(self._signer(role, key_id), append=True)
        write_durably(self._path(name), metadata.to_bytes(_SERIALIZER), mode=0o644)

    def _path(self, name: str) -> Path:
        return self._metadata / f"{name}.json"

    def _signer(self, role: str, key_id: str) -> CryptoSigner:
        return _read_signer(self._keys / f"{role}-{key_id[:16]}.pem")

    def _new_keys(self, role: str, count: int) -> list[Key]:
        return [self._new_key(role) for _ in range(count)]

    def _new_key(self, role: str) -> Key:
        private_key = Ed25519PrivateKey.generate()
        public_key = CryptoSigner(private_key).public_key
        write_private_key(self._keys / f"{role}-{public_key.keyid[:16]}.pem", private_key)
        return public_key

    def _expiry(self, role: str) -> dt.datetime:
        return dt.datetime.fromtimestamp(int(self._clock()), dt.timezone.utc) + dt.timedelta(days=_DAYS[role])

    def _is_old(self, signed: Root | Targets | Snapshot | Timestamp, role: str) -> bool:
        return (signed.expires.timestamp() - self._clock()) < _DAYS[role] * 86_400 / 2

    @staticmethod
    def _bin_of(path: str) -> str:
        return SuccinctRoles([], 1, _BIN_BITS, _BIN_PREFIX).get_role_for_target(path)

    @staticmethod
    def _listed(snapshot: Snapshot, name: str) -> int | None:
        meta = snapshot.meta.get(f"{name}.json")
        return None if meta is None else meta.version


def _read_signer(path: Path) -> CryptoSigner:
    return CryptoSigner(read_ed25519_key(path))
