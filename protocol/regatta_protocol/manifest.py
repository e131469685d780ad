"""The manifest: what a version of a model consists of. It is the thing that is signed (as a TUF target).

A manifest names every file of the bundle by digest and size, so one signature covers them all. It is verified over
the received bytes and stored as received; unknown fields are kept. `target_path` says where it stands in TUF.

Arrays in bundle files (`.npz`, never pickled):
- golden: `in.{i}` float or int [n, …] per input i, in the model's own real values; `out.{variant}.{j}` float32
  [n, …] per output j, computed with the reference kernels.
- evaluation: `x` [n, …] real values for input 0 (float32), `y` int64 [n] labels.
Real value of a quantized tensor = (q − zero_point) · scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from regatta_protocol.ids import DigestField, ModelNameField, ModelRef
from regatta_protocol.policy import Policy
from regatta_protocol.values import MAX_MANIFEST_BYTES, Accuracy, Latency, TensorSpec
from regatta_protocol.wire import Wire

if TYPE_CHECKING:
    from regatta_protocol.processing import Processing

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_MANIFEST_BYTES",
    "FileRef",
    "LineageStep",
    "Manifest",
    "Overlay",
    "Policy",
    "Variant",
    "target_path",
]

MAX_FILE_BYTES = 2 * 1024**3  # flatbuffers end at 2 GiB


class FileRef(Wire):
    """A file of the bundle, by content."""

    digest: DigestField
    size_bytes: int = Field(ge=0, le=MAX_FILE_BYTES)


class Overlay(Wire):
    """What an FPGA is loaded with before the delegate that drives it can work."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    bitstream: FileRef
    dtbo: FileRef | None = None  # a compiled device-tree overlay
    flags: int = Field(default=0, ge=0, le=0xFFFF_FFFF)  # of the FPGA manager: 1 is a partial bitstream
    delegate: str


class Variant(Wire):
    """One file that computes the model, with what the fleet measured when it made it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    file: FileRef
    precision: str  # float32, float16, int8, uint8, …
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    requires: tuple[str, ...] = ()  # delegates it cannot run without, for example edgetpu
    overlay: Overlay | None = None  # loaded into the FPGA first; its delegate is among `requires`
    steps: tuple[str, ...] = ()  # lineage: what made it of the source
    accuracy: Accuracy | None = None
    latency: Latency | None = None  # on the machine that optimized it, with latency_setting
    latency_setting: str | None = None

    @model_validator(mode="after")
    def _overlay_has_its_delegate(self) -> Variant:
        if self.overlay is not None and self.overlay.delegate not in self.requires:
            raise ValueError(f"variant {self.name} must require {self.overlay.delegate}, its overlay's delegate")
        return self

    def files(self) -> tuple[FileRef, ...]:
        """Return the variant's own files."""
        refs = (self.file,) if self.overlay is None else (self.file, self.overlay.bitstream, self.overlay.dtbo)
        return tuple(ref for ref in refs if ref is not None)


class LineageStep(Wire):
    """A step of the recipe that made the version: what went in, how, and what came out, by content."""

    step: str = Field(max_length=64)  # take, search, prune, quantize, …
    words: tuple[str, ...] = Field(default=(), max_length=64)  # what it did
    parameters: str = Field(default="{}", max_length=8192)  # JSON, as the recipe gave them
    key: DigestField  # of all that the result depends on: inputs, parameters, tool versions, seed
    seed: int
    inputs: dict[str, DigestField] = Field(default_factory=dict, max_length=64)  # model, samples and hooks
    outputs: dict[str, DigestField] = Field(default_factory=dict, max_length=64)  # file by the variant's name
    tools: dict[str, str] = Field(default_factory=dict, max_length=64)  # distribution -> version


class Manifest(Wire):
    """A version of a model."""

    schema_version: int = 1
    name: ModelNameField
    version: int = Field(ge=1)
    created_at: str  # ISO 8601
    task: Literal["classification", "other"] = "other"
    variants: tuple[Variant, ...] = Field(min_length=1, max_length=64)
    golden: FileRef
    evaluation: FileRef | None = None
    labels: FileRef | None = None  # text, one label a line
    input: dict[str, Any] | None = None  # how a picture becomes input 0; a processing.ImageInput
    audio: dict[str, Any] | None = None  # or a sound; a processing.AudioInput
    result: dict[str, Any] | None = None  # what the outputs mean; a processing.Result
    policy: Policy = Policy()
    source: str | None = None  # the file name that it was made of
    lineage: tuple[str, ...] = ()
    history: tuple[LineageStep, ...] = Field(default=(), max_length=64)  # of a recipe; none of a bare file

    @model_validator(mode="after")
    def _variants_differ(self) -> Manifest:
        names = [variant.name for variant in self.variants]
        if len(set(names)) != len(names):
            raise ValueError(f"two variants have the same name: {names}")
        return self

    @model_validator(mode="after")
    def _one_overlay(self) -> Manifest:
        overlays = {variant.overlay for variant in self.variants if variant.overlay is not None}
        if len(overlays) > 1:  # a race compares its candidates side by side, and an FPGA holds one
            raise ValueError(f"the variants have {len(overlays)} different overlays: a version may have one")
        return self

    @property
    def ref(self) -> ModelRef:
        return ModelRef(self.name, self.version)

    @property
    def processing(self) -> Processing:
        """How the device prepares the input and reads the outputs.

        Raises:
            Rejected: when it is not understood: it may be of a newer fleet.
        """
        from regatta_protocol.processing import read_described

        described = {"input": self.input, "audio": self.audio, "result": self.result}
        return read_described(described, f"the processing of {self.ref} is not understood here")

    def files(self) -> tuple[FileRef, ...]:
        """Return every file of the bundle, once each."""
        refs = [ref for variant in self.variants for ref in variant.files()]
        refs += [ref for ref in (self.golden, self.evaluation, self.labels) if ref is not None]
        return tuple({ref.digest: ref for ref in refs}.values())


def target_path(ref: ModelRef) -> str:
    """Return the TUF target path of a version's manifest."""
    return f"models/{ref.name}/{ref.version}/manifest.json"
