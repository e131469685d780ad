"""What tests of the fleet's server share: a registry with versions, and devices that are only reports."""

from __future__ import annotations

from dataclasses import dataclass, field

from regatta_fleet.core.gates import Outcome
from regatta_fleet.database import devices, models, rollouts
from regatta_fleet.database.engine import Database, open_database
from regatta_fleet.devices.ingest import Ingest
from regatta_fleet.rollouts import rolling
from regatta_fleet.schemas import RolloutDetail, RolloutRequest
from regatta_protocol.bus import Message
from regatta_protocol.codec import encode
from regatta_protocol.ids import DeviceId, ModelName, ModelRef, digest_of_bytes
from regatta_protocol.manifest import FileRef, Manifest, Variant
from regatta_protocol.measurement import BoardFacts
from regatta_protocol.messages import InstallState, ModelReport, Reported
from regatta_protocol.topics import Up, up
from regatta_protocol.values import Accuracy, Latency, TensorSpec

__all__ = ["DIGITS", "SimulatedFleet", "make_manifest", "make_variant", "reference"]

DIGITS = ModelName("digits")


def reference(content: bytes) -> FileRef:
    """Return the reference of a file with this content."""
    return FileRef(digest=digest_of_bytes(content), size_bytes=len(content))


def make_variant(name: str = "int8", content: bytes = b"model", accuracy: float | None = 0.98) -> Variant:
    """Return a variant whose file is `content`."""
    tensor = TensorSpec(name="x", dtype="int8", shape=(1, 64), scale=0.1, zero_point=0)
    return Variant(
        name=name,
        file=reference(content),
        precision="int8",
        inputs=(tensor,),
        outputs=(tensor,),
        accuracy=None if accuracy is None else Accuracy(correct=round(accuracy * 100), total=100),
    )


def make_manifest(ref: ModelRef, accuracy: float | None = 0.98) -> Manifest:
    """Return a manifest whose variant the fleet measured with `accuracy`."""
    return Manifest(
        name=ref.name,
        version=ref.version,
        created_at="2024-01-01T00:00:00+00:00",
        variants=(make_variant(accuracy=accuracy),),
        golden=reference(b"golden"),
    )


@dataclass
class SimulatedFleet:
    """Devices that report what a test says, over the real ingest, rollouts and database; time is a number."""

    database: Database = field(default_factory=lambda: open_database("sqlite://"))
    now: float = 1000.0
    sequences: dict[DeviceId, int] = field(default_factory=dict)
    ingest: Ingest = field(init=False)

    def __post_init__(self) -> None:
        self.ingest = Ingest(self.database)

    def enroll(self, *names: str, group: str = "default") -> tuple[DeviceId, ...]:
        """Let devices in."""
        with self.database.write() as tx:
            for name in names:
                devices.enroll_device(tx, DeviceId(name), group=group, board=BoardFacts(), now=self.now)
                rolling.welcome(tx, DeviceId(name), group, self.now)
        return tuple(DeviceId(name) for name in names)

    def push(self, version: int, accuracy: float | None = 0.98) -> ModelRef:
        """Put a signed version into the registry."""
        ref = ModelRef(DIGITS, version)
        manifest = make_manifest(ref, accuracy)
        text = encode(manifest).decode()
        with self.database.write() as tx:
            models.add_version(tx, manifest, text, digest_of_bytes(text.encode()), self.now)
            models.mark_signed(tx, ref)
        return ref

    def start(self, version: int, **fields: object) -> str:
        """Start a rollout of a version; returns its id."""
        request = RolloutRequest.model_validate({"model": "digits", "version": version, **fields})
        identifier = f"r-{version}-{self.now:g}"
        with self.database.write() as tx:
            rolling.start_rollout(tx, identifier, request, self.now)
        self.advance()
        return identifier

    def advance(self) -> set[DeviceId]:
        """Carry rollouts on; returns whose assignment changed."""
        with self.database.write() as tx:
            return rolling.advance_all(tx, self.now)

    def restart(self) -> None:
        """Be a server that was killed and started again: only the database is left."""
        self.ingest = Ingest(self.database)

    def detail(self, identifier: str) -> RolloutDetail:
        """Return the rollout as the API shows it."""
        with self.database.read() as tx:
            row = rollouts.get_rollout(tx, identifier)
        assert row is not None
        return rolling.describe(row)

    def outcomes(self, identifier: str) -> dict[DeviceId, Outcome]:
        """Return how each device of a rollout stands."""
        with self.database.read() as tx:
            row = rollouts.get_rollout(tx, identifier)
        assert row is not None
        return {trial.device: trial.outcome for wave in row.rollout.waves for trial in wave.trials}

    def assigned(self, device: DeviceId) -> tuple[int, int | None]:
        """Return the device's generation, and the version of digits that it shall run."""
        with self.database.read() as tx:
            wanted = devices.get_desired(tx, device)
        assert wanted is not None
        model = wanted.models.get(DIGITS)
        return wanted.generation, None if model is None else model.version

    def report(
        self,
        device: DeviceId,
        state: InstallState = InstallState.COMMITTED,
        *,
        accuracy: float | None = 0.98,
        p99_us: float | None = 900.0,
        reason: str | None = None,
        agreement: str | None = None,
        opens_at: float | None = None,
        previous: int | None = None,
    ) -> None:
        """Have the device report the version that it shall run (and, if it went back, what it serves instead)."""
        with self.database.read() as tx:
            wanted = devices.get_desired(tx, device)
        assert wanted is not None
        models_reported = []
        for name, each in wanted.models.items():
            models_reported.append(
                ModelReport(
                    name=name,
                    version=each.version,
                    state=state,
                    serving=state is InstallState.COMMITTED,
                    reason=reason,
                    opens_at=opens_at,
                    agreement=agreement,
                    rollout=each.rollout,
                    accuracy=None if accuracy is None else Accuracy(correct=round(accuracy * 100), total=100),
                    latency=None if p99_us is None else Latency(samples=9, p50_us=1, p90_us=1, p99_us=p99_us),
                )
            )
        if previous is not None:
            models_reported.append(
                ModelReport(
                    name=DIGITS,
                    version=previous,
                    state=InstallState.COMMITTED,
                    serving=True,
                    accuracy=Accuracy(correct=98, total=100),
                )
            )
        self.say(device, wanted.generation, tuple(models_reported))
        self.advance()

    def say(self, device: DeviceId, generation: int, reports: tuple[ModelReport, ...]) -> None:
        """Have the device send a report as it stands."""
        self.sequences[device] = self.sequences.get(device, 0) + 1
        reported = Reported(
            device=device,
            generation=generation,
            sequence=self.sequences[device],
            agent_version="0",
            boot="b",
            models=reports,
        )
        self.ingest.take(Message(up(device, Up.REPORTED), encode(reported)), self.now)
