"""A fleet's signed metadata and a device that verifies them, with a clock of their own, for tests of trust."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from regatta_provisioning.repository import MetadataRepository
from regatta_provisioning.verifier import verify
from regatta_provisioning.verifying import MetadataJob, VerifyResult

START = 1_780_000_000.0  # May 2026
DAY = 86_400.0
FIRST = "models/digits/1/manifest.json"
SECOND = "models/digits/2/manifest.json"


class SignedFleet:
    """The authority's side, in `folder`."""

    def __init__(self, folder: Path, *, root_keys: int = 1) -> None:
        self.folder = folder
        self.now = START
        self.repository = MetadataRepository.create(folder, root_keys=root_keys, clock=self.clock)

    def clock(self) -> float:
        return self.now

    def answer(self, target: str = FIRST, root_version: int = 1) -> dict[str, str]:
        return self.repository.files_for(target, root_version)


@dataclass
class Device:
    """The device's side: what it pinned, keeps and has seen."""

    folder: Path
    root_path: Path = field(init=False)
    trust_dir: Path = field(init=False)
    floor: dict[str, int] = field(default_factory=dict)
    root_version: int = 1

    def __post_init__(self) -> None:
        self.root_path = self.folder / "root.json"
        self.trust_dir = self.folder / "trust"
        self.folder.mkdir(parents=True, exist_ok=True)

    def pin(self, root_json: str) -> Device:
        self.root_path.write_text(root_json)
        return self

    def job(self, files: dict[str, str], target: str = FIRST, now: float = START) -> MetadataJob:
        return MetadataJob(
            trust_dir=str(self.trust_dir),
            root_path=str(self.root_path),
            files=files,
            targets=(target,),
            floor=self.floor,
            now=now,
        )

    def verify(self, files: dict[str, str], target: str = FIRST, now: float = START) -> VerifyResult:
        """Return the verifier's answer, after taking up the floor as the agent does."""
        result = verify(self.job(files, target, now))
        if result.ok:
            self.floor = result.versions
        self.root_version = result.root_version or self.root_version
        return result

    def lose_metadata(self) -> None:
        shutil.rmtree(self.trust_dir)

    def zero_metadata(self) -> None:
        """As a power cut leaves files that were never synced."""
        for path in self.trust_dir.rglob("*.json"):
            path.write_bytes(b"")
