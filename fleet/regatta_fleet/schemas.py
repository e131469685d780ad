"""The shapes of the fleet's HTTP API, shared by the server, the command line, the page and the demo.

They are what OpenAPI describes at `/docs`. They derive from the wire's base: an older CLI survives a newer server.
Times are seconds since 1970 (UTC). Nothing here has behavior.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from regatta_protocol.batch import BatchState, BatchSummary, ResultsState
from regatta_protocol.enums import StrEnum
from regatta_protocol.ids import DeviceIdField, DigestField, ModelNameField
from regatta_protocol.manifest import FileRef, LineageStep, Manifest, Variant
from regatta_protocol.measurement import BoardFacts, RaceReport
from regatta_protocol.messages import InstallState
from regatta_protocol.policy import KnownPolicy, Policy
from regatta_protocol.update_window import MAX_WINDOWS, UpdateWindowField
from regatta_protocol.values import Accuracy, Latency, Power
from regatta_protocol.wire import Wire

__all__ = [
    "MAX_RESULTS_BYTES",
    "BatchDetail",
    "BatchOnDevice",
    "BatchRequest",
    "BundleDraft",
    "DeviceDetail",
    "DeviceModel",
    "DeviceSummary",
    "FleetEvent",
    "FleetStatus",
    "GateConfig",
    "GroupPolicy",
    "GroupWindows",
    "ModelSummary",
    "Problem",
    "ResultsOnDevice",
    "ResultsRequest",
    "RolloutDetail",
    "RolloutRequest",
    "RolloutState",
    "ServingSummary",
    "TokenRequest",
    "TokenResponse",
    "VersionDetail",
    "WaveDetail",
    "WaveState",
    "WindowsRequest",
]

MAX_RESULTS_BYTES = 1024 * 1024 * 1024  # of one output


class Problem(Wire):
    """The body of every error answer: what happened and what to do."""

    error: str
    hint: str | None = None


class TokenRequest(Wire):
    """Ask for a one-time enrolment token (`regatta device token`)."""

    device: DeviceIdField | None = None  # None: the device may choose its id, or gets one from the server
    group: str = Field(default="default", pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    valid_s: float = Field(default=3600, gt=0, le=30 * 86_400)


class TokenResponse(Wire):
    token: str  # shown once; the server keeps only its hash
    expires_at: float


class BundleDraft(Wire):
    """A bundle whose files are uploaded; the server gives it the next version, signs and stores it."""

    task: Literal["classification", "other"] = "other"
    variants: tuple[Variant, ...] = Field(min_length=1, max_length=64)
    golden: FileRef
    evaluation: FileRef | None = None
    labels: FileRef | None = None
    input: dict[str, Any] | None = None  # this and the next two as in a manifest
    audio: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    policy: KnownPolicy = Policy()
    source: str | None = None
    lineage: tuple[str, ...] = ()
    history: tuple[LineageStep, ...] = Field(default=(), max_length=64)


class ModelSummary(Wire):
    name: ModelNameField
    versions: tuple[int, ...]
    devices_serving: int


class VersionDetail(Wire):
    """A version with what the fleet knows of it (`regatta model show`)."""

    manifest: Manifest
    devices: tuple[DeviceModel, ...] = ()


class StageLatency(Wire):
    """How long one stage of requests took, of those whose stages were told."""

    requests: int
    p50_us: float | None
    p99_us: float | None


class ServingSummary(Wire):
    """What one device served of one version, over all its telemetry."""

    requests: int
    errors: int
    p50_us: float | None
    p99_us: float | None
    stages: dict[str, StageLatency] = Field(default_factory=dict)  # queue, compute_input, compute_infer, compute_output
    feedback: Accuracy | None = None
    power: Power | None = None
    since: float | None = None
    until: float | None = None


class DeviceModel(Wire):
    """One version on one device, as last reported."""

    device: DeviceIdField
    name: ModelNameField
    version: int
    state: InstallState
    serving: bool
    reason: str | None = None
    opens_at: float | None = None  # by the device's clock: when the update window that it waits for opens
    placement: str | None = None  # the candidate that serves
    degraded: str | None = None  # why that is not the race's winner
    accuracy: Accuracy | None = None
    latency: Latency | None = None  # of the placement in the race
    power: Power | None = None
    basis: str | None = None  # of the race: full, or confirmed
    served: ServingSummary | None = None


class DeviceSummary(Wire):
    id: DeviceIdField
    group: str
    up: bool
    last_seen: float | None
    enrolled_at: float
    agent_version: str | None = None
    board: BoardFacts = BoardFacts()
    desired_generation: int = 0
    reported_generation: int | None = None
    bytes_received: int = 0
    dropped_items: int = 0  # of telemetry, for want of room on the device
    revoked: bool = False
    models: tuple[DeviceModel, ...] = ()


class DeviceDetail(DeviceSummary):
    """A device with its races, newest first."""

    races: tuple[RaceReport, ...] = ()


class GateConfig(Wire):
    """When a wave is promoted. Drops and ratios compare with the version that the same devices ran before."""

    min_success_ratio: float = Field(default=1.0, ge=0, le=1)
    max_accuracy_drop: float = Field(default=0.02, ge=0, le=1)
    max_p99_ratio: float = Field(default=2.0, gt=0)
    on_failure: Literal["roll_back", "hold"] = "roll_back"
    timeout_s: float = Field(default=3600, gt=0)  # undecided by then, a wave fails; update windows come on top


class RolloutRequest(Wire):
    """Send a version to devices in waves (`regatta rollout start`)."""

    model: ModelNameField
    version: int = Field(ge=1)
    to: tuple[str, ...] = ("all",)  # "all", "group:NAME" or device ids
    waves: tuple[float, ...] = Field(
        default=(0.1, 0.5, 1.0), min_length=1, max_length=20
    )  # cumulative shares in (0, 1]
    gate: GateConfig = GateConfig()
    trial_s: float = Field(default=5.0, ge=0, le=86_400)
    ignore_window: bool = False  # urgent: devices do not wait for their update windows


class GroupPolicy(Wire):
    """A policy that is set for a group of devices (`regatta policy set`); only the fields that it sets are sent."""

    group: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")  # "all": every device
    model: ModelNameField | None = None  # None: every model
    policy: Policy
    devices: int = 0  # that run a model by it


class WindowsRequest(Wire):
    """The update windows of a group, as they are written (regatta_protocol.update_window)."""

    windows: tuple[UpdateWindowField, ...] = Field(min_length=1, max_length=MAX_WINDOWS)


class GroupWindows(Wire):
    """The update windows that are set for a group (`regatta window set`)."""

    group: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")  # "all": every device whose group has none
    windows: tuple[str, ...]
    devices: int = 0  # that run a model by them


class RolloutState(StrEnum):
    RUNNING = "running"
    HELD = "held"
    COMPLETED = "completed"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"


class WaveState(StrEnum):
    PENDING = "pending"
    OBSERVING = "observing"
    PROMOTED = "promoted"
    FAILED = "failed"


class WaveDetail(Wire):
    number: int  # from 1
    state: WaveState
    devices: tuple[DeviceIdField, ...]
    succeeded: int = 0
    failed: int = 0
    waiting: int = 0  # for their update windows
    reason: str | None = None  # the gate's words, or who waits for a window


class RolloutDetail(Wire):
    id: str
    model: ModelNameField
    version: int
    state: RolloutState
    reason: str | None = None
    waves: tuple[WaveDetail, ...]
    gate: GateConfig
    created_at: float
    finished_at: float | None = None
    ignore_window: bool = False


class BatchRequest(Wire):
    """Have devices answer the records of an input that lies on them (`regatta batch start`)."""

    model: ModelNameField
    on: tuple[str, ...] = Field(min_length=1, max_length=1000)  # "all", "group:NAME" or device ids
    input: str = Field(min_length=1, max_length=512)
    output: str | None = Field(default=None, min_length=1, max_length=255)  # None: named after the batch
    format: Literal["jsonl", "csv", "npy", "parquet"] = "jsonl"  # of an output that is named after the batch
    limit: int | None = Field(default=None, ge=1, lt=2**53)


class ResultsRequest(Wire):
    """Have the outputs of a batch sent to the fleet (`regatta batch results`)."""

    on: tuple[DeviceIdField, ...] = Field(default=(), max_length=1000)  # none named: every device of the batch
    max_bytes: int = Field(default=64 * 1024 * 1024, ge=1, le=MAX_RESULTS_BYTES)  # a longer output is refused


class ResultsOnDevice(Wire):
    """How the pulling of one device's output stands."""

    state: ResultsState
    reason: str | None = None
    size_bytes: int | None = None
    received_bytes: int = 0
    digest: DigestField | None = None


class BatchOnDevice(Wire):
    """How a batch stands on one device, as last reported."""

    device: DeviceIdField
    state: BatchState
    reason: str | None = None
    attempt: int = 0
    records: int = 0
    total: int | None = None
    summary: BatchSummary | None = None
    results: ResultsOnDevice | None = None  # None: nobody asked for its output
    updated_at: float


class BatchDetail(Wire):
    id: str
    model: ModelNameField
    input: str
    output: str
    limit: int | None = None
    created_at: float
    devices: tuple[BatchOnDevice, ...]


class FleetEvent(Wire):
    """A line of the fleet's history."""

    at: float
    kind: str
    text: str
    device: str | None = None
    rollout: str | None = None


class FleetStatus(Wire):
    """The whole fleet on one page (`regatta status`)."""

    fleet: str
    version: str
    broker: str  # host:port
    broker_up: bool
    devices: tuple[DeviceSummary, ...]
    models: tuple[ModelSummary, ...]
    rollouts: tuple[RolloutDetail, ...]
    events: tuple[FleetEvent, ...]


VersionDetail.model_rebuild()
