"""What to race, as it is written down for the race's process: files, policy, and what the race may use and spend."""

from __future__ import annotations

from pydantic import Field

from regatta_protocol.manifest import Policy
from regatta_protocol.values import Accuracy
from regatta_protocol.wire import Wire
from regatta_runtimes.fpga.overlay import OverlayFiles
from regatta_runtimes.power.settings import PowerSettings
from regatta_runtimes.runtime import RUNTIMES
from regatta_runtimes.worker.nursery import DEFAULT_MEMORY_BYTES
from regatta_runtimes.worker.quarantine import Quarantine

__all__ = ["MAX_SPEC_BYTES", "RaceSpec", "RaceVariant"]

MAX_SPEC_BYTES = 1 << 20


class RaceVariant(Wire):
    """A file of the bundle; `accuracy` is what the fleet measured."""

    name: str
    path: str
    requires: tuple[str, ...] = ()
    overlay: OverlayFiles | None = None  # the same for all variants that have one
    precision: str | None = None
    accuracy: Accuracy | None = None


class RaceSpec(Wire):
    """What to race.

    `backends` adds runtimes: name -> module with open_session and version. `delegate_files` adds rows to the table of
    delegates (delegates.py).
    """

    model: str
    version: int
    variants: tuple[RaceVariant, ...] = Field(max_length=64)
    golden: str | None = None
    evaluation: str | None = None
    policy: Policy = Policy()
    sysroot: str = "/"
    power: PowerSettings = PowerSettings()
    threads: tuple[int, ...] | None = None  # default: 1, 2, 4 … all cores
    budget_s: float = Field(default=20.0, gt=0, le=3600)
    memory_bytes: int = Field(default=DEFAULT_MEMORY_BYTES, ge=64 << 20)  # of one worker
    runtimes: tuple[str, ...] = tuple(RUNTIMES)
    backends: dict[str, str] = Field(default_factory=dict)
    earlier: str | None = None  # the report of a race of this version here, under another policy (rejudge.py)
    delegate_files: tuple[str, ...] = Field(default=(), max_length=64)
    quarantine: Quarantine = Quarantine()  # of the races and deaths before this one
    fpga_reserved: str | None = None  # why no overlay may be loaded: the FPGA serves another model
    prior_path: str | None = None  # where the answer to the key lies once standard input has ended; None: do not ask
