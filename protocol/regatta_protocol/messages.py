"""Every message between a device and its fleet (topics.py says where each travels).

Control messages are JSON; telemetry is zlib-compressed JSON (codec.py). Commands are idempotent and carry a
generation, because a broker may replay what was acknowledged and lose what was queued. Chunks are binary (chunk.py).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from regatta_protocol.batch import (
    MAX_BATCH_JOBS,
    MAX_RESULTS_WANTED,
    BatchJob,
    BatchReport,
    ResultsReport,
    ResultsWanted,
)
from regatta_protocol.enums import OpenStrEnum
from regatta_protocol.ids import DeviceIdField, DigestField, ModelNameField
from regatta_protocol.measurement import BoardFacts, PriorRace, RaceReport
from regatta_protocol.policy import Policy
from regatta_protocol.values import Accuracy, Latency, Power, ServingWindow
from regatta_protocol.wire import Wire

__all__ = [
    "Assignment",
    "DesiredModel",
    "Get",
    "InstallState",
    "ModelReport",
    "OtherItem",
    "Presence",
    "RaceItem",
    "Reported",
    "Request",
    "Response",
    "ServingWindow",
    "SignedAssignment",
    "TelemetryBatch",
]


class Presence(Wire):
    """Retained on `up/state`; the last will carries `up=False`."""

    schema_version: int = 1
    up: bool
    boot: str = ""  # changes with every start of the agent
    agent_version: str = ""


class DesiredModel(Wire):
    """The version of a model that a device shall run."""

    version: int = Field(ge=1)
    rollout: str | None = None  # echoed in reports, so that a wave counts only its own
    trial_s: float = Field(default=5.0, ge=0, le=86_400)  # how long a new version must serve before it is committed
    policy: Policy | None = None  # instead of the bundle's, where the fleet has set one for the device's group
    ignore_window: bool = False  # it is urgent, or a way back: no update window is waited for


class Assignment(Wire):
    """What one device shall run. Signed as bytes by the fleet's online key and wrapped in `SignedAssignment`."""

    schema_version: int = 1
    fleet: str  # the fleet's id, so that an assignment of another fleet is refused
    device: DeviceIdField
    generation: int = Field(ge=0)  # monotonic per device
    issued_at: float  # seconds since 1970, by the server's clock
    models: dict[ModelNameField, DesiredModel] = Field(default_factory=dict, max_length=64)
    batch: tuple[BatchJob, ...] = Field(default=(), max_length=MAX_BATCH_JOBS)  # jobs that have not ended, oldest first
    results: tuple[ResultsWanted, ...] = Field(default=(), max_length=MAX_RESULTS_WANTED)  # outputs to be sent
    update_window: tuple[str, ...] = Field(default=(), max_length=16)  # of the device's group (update_window.py)


class SignedAssignment(Wire):
    """Retained on `dn/desired`. `payload` is the exact JSON text that was signed."""

    schema_version: int = 1
    payload: str = Field(max_length=48_000)
    key_id: str
    signature: str  # Ed25519 (RFC 8032) over the UTF-8 bytes of payload, base64


class InstallState(OpenStrEnum):
    """Where a version stands on a device; the agent's table of transitions is over these."""

    ASSIGNED = "assigned"  # wanted; the signed metadata is being asked for
    AUTHORIZED = "authorized"  # metadata verified; the manifest is being fetched
    DOWNLOADING = "downloading"
    VERIFIED = "verified"  # every file is here with its digest; to be raced
    RACING = "racing"
    PLACED = "placed"  # a winner is known; its worker is starting
    ON_TRIAL = "on_trial"  # serving, watched; the previous version stands by
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"  # failed on trial; the previous version serves again
    FAILED = "failed"  # cannot be installed here; the reason says why
    RETIRED = "retired"  # no longer wanted


class ModelReport(Wire):
    """One installed or wanted version on a device."""

    name: ModelNameField
    version: int = Field(ge=1)
    state: InstallState
    serving: bool = False
    reason: str | None = None  # of each thing not done, or what is being waited for
    opens_at: float | None = None  # seconds since 1970 by the device's clock: when the window it waits for opens
    agreement: str | None = None  # in words, how it answered live requests in the shadow of the version before
    rollout: str | None = None
    attempt: int = 0
    placement: str | None = None  # the candidate that serves
    degraded: str | None = None  # why that is not the race's winner
    accuracy: Accuracy | None = None
    latency: Latency | None = None  # of the placed candidate in the race
    power: Power | None = None
    basis: str | None = Field(default=None, max_length=64)  # of the race: full, or confirmed (RaceReport)


class Reported(Wire):
    """What the device runs, on `up/reported`, echoing the generation that it has taken up."""

    schema_version: int = 1
    device: DeviceIdField
    generation: int = Field(ge=0)
    sequence: int = Field(ge=0)  # grows with each report, over restarts; older ones are ignored
    agent_version: str
    boot: str
    board: BoardFacts = BoardFacts()
    bytes_received: int = Field(default=0, ge=0)  # MQTT payload bytes since enrolment
    models: tuple[ModelReport, ...] = Field(default=(), max_length=256)
    batch: tuple[BatchReport, ...] | None = Field(default=None, max_length=64)  # None: an agent that knows no jobs
    results: tuple[ResultsReport, ...] | None = Field(default=None, max_length=64)  # None: an agent that sends none


class RaceItem(Wire):
    """Telemetry: a race that was run."""

    kind: Literal["race"] = "race"
    at: float  # seconds since 1970, by the device's clock
    report: RaceReport


class OtherItem(Wire):
    """Telemetry of a kind that only a newer peer knows: the batch's other items count all the same."""

    kind: str = Field(max_length=64)


def _kind_of(item: object) -> str:
    kind = item.get("kind") if isinstance(item, dict) else getattr(item, "kind", None)
    return str(kind) if kind in ("race", "serving") else "other"


TelemetryItem = Annotated[
    Annotated[RaceItem, Tag("race")] | Annotated[ServingWindow, Tag("serving")] | Annotated[OtherItem, Tag("other")],
    Discriminator(_kind_of),
]


class TelemetryBatch(Wire):
    """What `up/telemetry` carries, zlib-compressed. `id` is the idempotency key: a repeated batch is counted once."""

    schema_version: int = 1
    id: str = Field(min_length=8, max_length=64)
    device: DeviceIdField
    dropped: int = Field(default=0, ge=0)  # items thinned away for lack of space since the last batch
    items: tuple[TelemetryItem, ...] = Field(max_length=500)


class Request(Wire):
    """A small remote call from a device.

    `metadata`: params `target` (a target path) and `root_version` (int). `race`: param `key` (of a race report). A
    method that the fleet does not know is answered with an error.
    """

    schema_version: int = 1
    id: str = Field(min_length=1, max_length=64)
    method: str = Field(max_length=64)
    params: dict[str, str | int] = Field(default_factory=dict, max_length=16)


class Response(Wire):
    """The answer on `dn/response`, zlib-compressed. Exactly one of `files`, `race` and `error` is set.

    For `metadata`, files maps role file names (`2.root.json`, `timestamp.json`, `7.snapshot.json`, …) to their
    exact text. For `race`, a result with the key that was asked for; `error` says when the fleet knows none. An answer
    to a failed `Get` has the id `get-{transfer}`. `at` is not signed: it explains, and decides about no trust.
    """

    schema_version: int = 1
    id: str = Field(max_length=64)
    files: dict[str, str] | None = Field(default=None, max_length=64)
    race: PriorRace | None = None
    error: str | None = None
    retryable: bool = False
    at: float | None = None  # seconds since 1970 by the server's clock; None from older servers


class Get(Wire):
    """Ask for chunks of a blob, on `up/get`; they come on `dn/chunk/{transfer}` with QoS 0, none twice per Get.

    The device decides how many may be on their way: it sends the next Get when it wants more, and asks again for
    what did not come.
    """

    schema_version: int = 1
    transfer: int = Field(ge=0, lt=2**32)
    digest: DigestField
    chunk_bytes: int = Field(ge=1024, le=65_536)
    ranges: tuple[tuple[int, int], ...] = Field(min_length=1, max_length=256)  # [start, stop) of chunk indices
