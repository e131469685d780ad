"""What a pipeline counts, told in `STATUS_DIR/NAME/counters.json`: for `pipeline status` and as OpenMetrics."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from regatta_protocol.codec import decode
from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import RegattaError

__all__ = ["Counters", "openmetrics", "read_counters", "write_counters"]

_MAX_BYTES = 65_536
_HELP = {
    "came": "Frames that the source gave.",
    "dropped": "Frames that found no room in the line.",
    "refused": "Frames that the source or the model refused.",
    "failed": "Frames that the model did not answer.",
    "answered": "Frames that were answered.",
    "undelivered": "Results that a sink did not take.",
}


class Counters(BaseModel):
    """Counts since the process began."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    pipeline: str
    pid: int
    started_at: float
    told_at: float
    came: int = 0
    dropped: int = 0
    refused: int = 0
    failed: int = 0
    answered: int = 0
    undelivered: int = 0
    last_error: str | None = None


def write_counters(status_dir: Path, counters: Counters) -> None:
    """Tell the counters; a failure costs only the file. Not durable: a run folder lies in memory."""
    folder = status_dir / counters.pipeline
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / ".counters.json.new"
        fresh.write_bytes(counters.model_dump_json().encode())
        fresh.replace(folder / "counters.json")


def read_counters(status_dir: Path) -> Mapping[str, Counters]:
    """Return what the pipelines last told, by name."""
    found: dict[str, Counters] = {}
    for path in sorted(status_dir.glob("*/counters.json")):
        with contextlib.suppress(OSError, RegattaError):
            found[path.parent.name] = decode(Counters, read_bounded(path, _MAX_BYTES), _MAX_BYTES)
    return found


def openmetrics(all_counters: Mapping[str, Counters]) -> str:
    """Return the exposition of all pipelines."""
    lines = []
    for field, text in _HELP.items():
        name = f"regatta_pipeline_{field}_frames"
        lines += [f"# TYPE {name} counter", f"# HELP {name} {text}"]
        lines += [
            f'{name}_total{{pipeline="{pipeline}"}} {getattr(counters, field)}'
            for pipeline, counters in all_counters.items()
        ]
    return "\n".join([*lines, "# EOF", ""])
