"""What a race, a measurement or an inspection says to a worker process, and what the worker answers. No numpy.

One JSON object a line. A worker answers every command with one `Answer`; `Failed` says at which stage and why.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, RootModel

from regatta_protocol.values import Plugin, TensorSpec
from regatta_protocol.wire import Wire

__all__ = [
    "MAX_ANSWER_BYTES",
    "MAX_EVALUATED_SAMPLES",
    "MAX_TIMED_SAMPLES",
    "Answer",
    "AnswerLine",
    "Check",
    "Checked",
    "Command",
    "CommandLine",
    "Describe",
    "Described",
    "Evaluate",
    "Evaluated",
    "Failed",
    "Open",
    "Opened",
    "Reference",
    "Referenced",
    "Time",
    "Timed",
]

MAX_TIMED_SAMPLES = 4096  # of one Time command: about 40 KB of JSON
MAX_ANSWER_BYTES = 1 << 20
MAX_EVALUATED_SAMPLES = 1_000_000  # of one Evaluate command: 250 KB of hexadecimal digits


class Open(Wire):
    """Open the model as the candidate says, and infer once."""

    kind: Literal["open"] = "open"
    candidate_id: str
    model_path: str
    golden: str | None = None
    evaluation: str | None = None
    plugin: Plugin | None = None


class Check(Wire):
    """Compare with the golden outputs of the candidate's variant."""

    kind: Literal["check"] = "check"
    budget_s: float = Field(gt=0)  # at least two samples are compared, then as many as fit


class Evaluate(Wire):
    """Say of each sample of the evaluation set, from the first on, whether it is answered right."""

    kind: Literal["evaluate"] = "evaluate"
    budget_s: float = Field(gt=0)


class Time(Wire):
    """Time single inferences."""

    kind: Literal["time"] = "time"
    budget_s: float = Field(gt=0)
    min_samples: int = Field(ge=1, le=MAX_TIMED_SAMPLES)
    max_samples: int = Field(ge=1, le=MAX_TIMED_SAMPLES)
    warmup: int = Field(default=1, ge=0, le=1000)  # inferences before the first that counts
    warmup_s: float = Field(default=0.0, ge=0, le=10)  # and so long at least


class Describe(Wire):
    """Read what a model file is."""

    kind: Literal["describe"] = "describe"
    model_path: str


class Reference(Wire):
    """Make golden samples with the reference kernels."""

    kind: Literal["reference"] = "reference"
    variants: dict[str, str] = Field(min_length=1, max_length=64)  # name -> path
    output: str
    samples: str | None = None
    count: int = Field(ge=1, le=4096)
    seed: int = Field(ge=0)
    budget_s: float = Field(gt=0)


Command = Open | Check | Evaluate | Time | Describe | Reference


class CommandLine(RootModel[Annotated[Command, Field(discriminator="kind")]]):
    """Any command, as one line."""


class Opened(Wire):
    kind: Literal["opened"] = "opened"
    delegated_nodes: int
    first_us: float  # open + first inference


class Checked(Wire):
    """SNR = 10·log10(Σ reference² / Σ (output − reference)²) over all outputs, each scaled by its own power."""

    kind: Literal["checked"] = "checked"
    samples: int  # 0: the golden file has nothing for this variant
    snr_db: float | None
    sound: bool  # False only for gross wrongness
    detail: str


class Evaluated(Wire):
    kind: Literal["evaluated"] = "evaluated"
    right: str = Field(pattern=r"^[0-9a-f]+$", max_length=MAX_EVALUATED_SAMPLES // 4)  # hexadecimal; bit i is sample i
    total: int = Field(ge=1, le=MAX_EVALUATED_SAMPLES)
    available: int = Field(ge=1)  # samples in the set; total is less when the budget ended first


class Timed(Wire):
    kind: Literal["timed"] = "timed"
    samples_us: tuple[float, ...]


class Described(Wire):
    kind: Literal["described"] = "described"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: tuple[str, ...]
    precision: str
    requires: tuple[str, ...]
    refusal: str | None  # why this runtime cannot run it; None when it can


class Referenced(Wire):
    kind: Literal["referenced"] = "referenced"
    samples: int
    skipped: tuple[str, ...]  # variants that no reference kernel can compute


class Failed(Wire):
    """`stage`: missing is no such runtime, samples a bad golden or evaluation file."""

    kind: Literal["failed"] = "failed"
    stage: Literal["missing", "create", "prepare", "fallback", "invoke", "samples", "model", "memory", "misuse"]
    reason: str


Answer = Opened | Checked | Evaluated | Timed | Described | Referenced | Failed


class AnswerLine(RootModel[Annotated[Answer, Field(discriminator="kind")]]):
    """Any answer, as one line."""
