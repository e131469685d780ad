"""A bundle on disk: what the optimizer writes, `regatta model push` reads, and the server signs and stores.

    FOLDER/draft.json        a schemas.BundleDraft
    FOLDER/files/DIGEST      every file that the draft names, by its SHA-256
    FOLDER/…                 reports beside them, which are not pushed

Invariants:
- a bundle appears whole: it is built in a folder beside its place, synced, and renamed (one that is replaced is
  renamed away first, so for a moment there is none, but never half of one);
- what `Bundle.open` returns has every file, with the digest and size that the draft promises.

`bundle_from_model` makes a bundle of a user's bare .tflite or .onnx file, measured as it is.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from regatta_fleet.labels import labels_text, parse_labels
from regatta_fleet.optimize.samples import check_labels, check_shape, read_samples, write_samples
from regatta_fleet.overlay import Models, OverlaySource, overlay_of, with_overlay
from regatta_fleet.schemas import BundleDraft
from regatta_protocol.codec import decode, encode
from regatta_protocol.durable import read_bounded, rename_durably, sync_folder, write_durably
from regatta_protocol.errors import BadDigest, Rejected
from regatta_protocol.fitting import check_processing
from regatta_protocol.ids import Digest, digest_of_file
from regatta_protocol.manifest import MAX_FILE_BYTES, MAX_MANIFEST_BYTES, FileRef, Policy, Variant
from regatta_protocol.processing import ImageInput, Processing, as_json
from regatta_protocol.values import TensorSpec
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.golden import write_golden
from regatta_runtimes.inspect import ModelFacts, inspect_model
from regatta_runtimes.measure import measure_file

__all__ = [
    "Bundle",
    "BundleSource",
    "bundle_from_model",
    "check_given",
    "check_place",
    "file_ref",
    "golden_count",
    "guess_image",
    "input_image",
    "read_labels",
    "write_bundle",
]

logger = logging.getLogger(__name__)

_MAX_LABELS_BYTES = 8 * 1024 * 1024
_GOLDEN_SAMPLES = 16
_GOLDEN_BYTES = 2 * 1024 * 1024  # 3 pictures of 224 × 224 × 3 in float32: half of MobileNetV2's own 3.6 MB


@dataclass(frozen=True)
class Bundle:
    """A whole bundle whose files were verified when it was opened."""

    folder: Path
    draft: BundleDraft

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Return the bundle in the folder.

        Raises:
            Rejected: when it is no bundle, or lacks a file.
            BadDigest: when a file is not what the draft promises.
        """
        path = folder / "draft.json"
        if not path.is_file():
            raise Rejected(f"{folder} is no bundle: it has no draft.json. Make one with 'regatta model optimize'")
        draft = decode(BundleDraft, read_bounded(path, MAX_MANIFEST_BYTES), MAX_MANIFEST_BYTES)
        bundle = cls(folder, draft)
        for ref in bundle.files():
            _verify(bundle.path_of(ref), ref)
        return bundle

    def files(self) -> tuple[FileRef, ...]:
        """Return every file of the bundle, once each."""
        return _files_of(self.draft)

    def path_of(self, ref: FileRef) -> Path:
        """Return where the file lies."""
        return self.folder / "files" / ref.digest


@dataclass(frozen=True)
class BundleSource:
    """What a user gives beside a bare model file."""

    labels: Path | None = None
    evaluation: Path | None = None  # .npz with x, y and optionally scale, zero_point
    mean: float | None = None  # of pixels; with `scale` the input is a picture: real = (pixel − mean) · scale
    scale: float | None = None
    variants: tuple[Path, ...] = ()  # further files that compute the same model, for example an Edge TPU one
    policy: Policy = field(default_factory=Policy)
    overlay: OverlaySource | None = None
    processing: Processing | None = None  # what its input is made of and what its outputs mean


def file_ref(path: Path) -> FileRef:
    """Return the reference of a file by its content.

    Raises:
        OSError: when it cannot be read.
    """
    return FileRef(digest=digest_of_file(path), size_bytes=path.stat().st_size)


def write_bundle(
    folder: Path,
    draft: BundleDraft,
    files: Mapping[Digest, Path],
    *,
    reports: Mapping[str, bytes] | None = None,
    replace: bool = False,
) -> Bundle:
    """Write the bundle to `folder`, whole or not at all, and return it verified.

    Args:
        files: where each file that the draft names lies now; they are copied.
        reports: further files by name, beside the draft.
        replace: put it in place of a bundle that is there already; any other folder is never replaced.

    Raises:
        Rejected: when `folder` is taken, or a file of the draft is not given.
        BadDigest: when a file is not what the draft promises.
        OSError: when it cannot be written; `folder` is then as it was.
    """
    check_place(folder, replace)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _building(folder) as building:
        (building / "files").mkdir()
        for ref in _files_of(draft):
            if ref.digest not in files:
                raise Rejected(f"the bundle's draft names file {ref.digest}, which was not given")
            copy = building / "files" / ref.digest
            shutil.copyfile(files[ref.digest], copy)
            _verify(copy, ref)
            _sync_file(copy)
        for name, content in (reports or {}).items():
            write_durably(building / name, content, mode=0o644)
        write_durably(building / "draft.json", encode(draft, MAX_MANIFEST_BYTES), mode=0o644)
        sync_folder(building / "files")
        sync_folder(building)
        old = building.with_name(f"{building.name}.old")
        if folder.exists():
            folder.replace(old)
        rename_durably(building, folder)
        shutil.rmtree(old, ignore_errors=True)
    return Bundle.open(folder)


def bundle_from_model(
    model: Path,
    output: Path,
    source: BundleSource = BundleSource(),
    *,
    progress: Callable[[str, float], None] = lambda message, share: None,
    replace: bool = False,
) -> Bundle:
    """Make a bundle of one .tflite or .onnx file as it is, whatever its dtype, and return it.

    The file is inspected, its golden outputs computed by reference kernels, and, with an evaluation set, its accuracy
    measured; all of that in child processes, since a model is code. A warning is logged when labels and classes
    differ by one (ImageNet with and without background).

    Raises:
        Rejected: when the model is neither TFLite nor ONNX, is cut off, or has an operator that no runtime here
            supports; when labels do not fit its output, or the evaluation set its input.
    """
    check_place(output, replace)
    progress(f"inspecting {model.name}", 0.0)
    models = with_overlay(_inspect((model, *source.variants)), source.overlay)
    facts = next(iter(models.values()))[1]
    given = source.processing or Processing()
    for name, (_, found) in models.items():
        check_given(given, found, name)
    classes = facts.outputs[0].shape[-1] if facts.outputs and facts.outputs[0].shape else 0
    labels = None if source.labels is None else read_labels(source.labels, classes)
    with tempfile.TemporaryDirectory(prefix="regatta-bundle-") as scratch:
        parts = _Parts(Path(scratch))
        overlay = None if source.overlay is None else overlay_of(source.overlay, Path(scratch), parts.add)
        evaluation = None if source.evaluation is None else _evaluation(source.evaluation, facts, classes, parts)
        golden = parts.new("golden.npz")
        progress("computing golden samples with reference kernels", 0.2)
        files = {name: path for name, (path, _) in models.items()}
        write_golden(files, golden, samples=evaluation, count=golden_count(facts.inputs))
        variants = []
        for place, (name, (path, found)) in enumerate(models.items()):
            progress(f"measuring {name}", 0.5 + 0.4 * place / len(models))
            variant = _as_given(name, path, found, evaluation, golden, parts)
            if overlay is not None and overlay.delegate in variant.requires:
                variant = variant.model_copy(update={"overlay": overlay})
            variants.append(variant)
        draft = BundleDraft(
            task="classification" if labels is not None or evaluation is not None else "other",
            variants=tuple(variants),
            golden=parts.add(golden),
            evaluation=None if evaluation is None else parts.add(evaluation),
            labels=None if labels is None else parts.write("labels.txt", labels_text(labels)),
            input=as_json(input_image(source, facts)),
            audio=as_json(given.audio),
            result=as_json(given.result),
            policy=source.policy,
            source=model.name,
            lineage=(f"{model.name} as given",),
        )
        progress("writing the bundle", 0.95)
        bundle = write_bundle(output, draft, parts.files, replace=replace)
    progress(f"bundle in {output}", 1.0)
    return bundle


def golden_count(inputs: Sequence[TensorSpec]) -> int:
    """Return how many golden samples to keep: 16, fewer for large inputs, since every device downloads them."""
    sample_bytes = sum(4 * math.prod(max(size, 1) for size in spec.shape) for spec in inputs)
    return max(2, min(_GOLDEN_SAMPLES, _GOLDEN_BYTES // max(sample_bytes, 1)))


def check_given(processing: Processing, facts: ModelFacts, name: str) -> None:
    """Do nothing when the description of processing fits the variant.

    Raises:
        Rejected: otherwise; the text names the variant and the field.
    """
    try:
        check_processing(processing, facts.inputs, facts.outputs)
    except Rejected as err:
        raise Rejected(f"the processing of variant {name}: {err}") from err


def input_image(source: BundleSource, facts: ModelFacts) -> ImageInput | None:
    """Return how a picture becomes the model's input: as described, else guessed unless a sound is described."""
    described = source.processing or Processing()
    if described.image is not None or described.audio is not None:
        return described.image
    return guess_image(facts, mean=source.mean, scale=source.scale)


def guess_image(facts: ModelFacts, *, mean: float | None = None, scale: float | None = None) -> ImageInput | None:
    """Return how a picture becomes the model's input, or None when it does not look like taking one.

    Pictures are [1, h, w, 3], and [1, h, w, 1] when square (a spectrogram seldom is). For a quantized input the
    pixels 0..255 become its whole range, so a pixel is its own quantized value (int8: less 128). For a float input
    without `mean` and `scale`, pixels become 0..1.
    """
    if len(facts.inputs) != 1:
        return None
    spec = facts.inputs[0]
    if len(spec.shape) != 4 or spec.shape[1] < 1 or spec.shape[2] < 1 or spec.shape[3] not in (1, 3):
        return None
    asked = mean is not None or scale is not None
    if spec.shape[3] == 1 and spec.shape[1] != spec.shape[2] and not asked:
        return None
    default_mean, default_scale = 0.0, 1.0 / 255.0
    if spec.dtype in ("uint8", "int8") and spec.scale:
        default_mean = float((spec.zero_point or 0) + (128 if spec.dtype == "int8" else 0))
        default_scale = spec.scale
    return ImageInput(
        height=spec.shape[1],
        width=spec.shape[2],
        channels=3 if spec.shape[3] == 3 else 1,
        mean=default_mean if mean is None else mean,
        scale=default_scale if scale is None else scale,
    )


class _Parts:
    """The files that will become a bundle, with where they lie."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self.files: dict[Digest, Path] = {}

    def new(self, name: str) -> Path:
        """Return a path to write to."""
        return self._scratch / name

    def add(self, path: Path) -> FileRef:
        """Note a file that is written."""
        ref = file_ref(path)
        self.files[ref.digest] = path
        return ref

    def write(self, name: str, content: bytes) -> FileRef:
        """Write a file and note it."""
        write_durably(self.new(name), content, mode=0o644)
        return self.add(self.new(name))


def _inspect(models: Sequence[Path]) -> Models:
    """Return path and facts by the variant's name: its delegate or precision, told apart by number."""
    found: dict[str, tuple[Path, ModelFacts]] = {}
    for path in models:
        facts = inspect_model(path)
        name = facts.requires[0] if facts.requires else facts.precision
        if facts.model_format != "tflite":
            name = f"{facts.model_format}-{name}"
        if name in found:
            name = f"{name}-{len(found) + 1}"
        found[name] = (path, facts)
    return found


def _evaluation(path: Path, facts: ModelFacts, classes: int, parts: _Parts) -> Path:
    """Return the evaluation set as a bundle keeps it, in real values."""
    samples = read_samples(path)
    if samples.y is None:
        raise Rejected(f"{path.name} has no labels 'y': an evaluation set needs them")
    check_shape(samples, facts.inputs[0].shape, path.name)
    check_labels(samples, classes, path.name)
    write_samples(parts.new("evaluation.npz"), samples)
    return parts.new("evaluation.npz")


def _as_given(
    name: str, path: Path, facts: ModelFacts, evaluation: Path | None, golden: Path, parts: _Parts
) -> Variant:
    """Return the variant with what it measures on one thread of this machine, where it runs here."""
    measured = None
    if not facts.requires:
        onnx = facts.model_format == "onnx"
        candidate = Candidate("onnx", name, "cpu", 1) if onnx else Candidate("litert", name, "xnnpack", 1)
        measured = measure_file(candidate, path, evaluation=evaluation, golden=golden)
        if measured.latency is None:
            logger.warning("variant=%s measured=no outcome=%s reason=%s", name, measured.outcome, measured.reason)
    return Variant(
        name=name,
        file=parts.add(path),
        precision=facts.precision,
        inputs=facts.inputs,
        outputs=facts.outputs,
        requires=facts.requires,
        steps=("as given",),
        accuracy=None if measured is None else measured.accuracy,
        latency=None if measured is None else measured.latency,
        latency_setting=None if measured is None or measured.latency is None else f"{measured.id} where it was pushed",
    )


def read_labels(path: Path, classes: int) -> tuple[str, ...]:
    """Return the labels in the file, checked against the number of classes (0: unknown).

    Raises:
        Rejected: when there are more than one too many or too few.
    """
    labels = parse_labels(read_bounded(path, _MAX_LABELS_BYTES), path.name)
    if classes > 0 and abs(len(labels) - classes) > 1:
        raise Rejected(
            f"{path.name} has {len(labels)} labels, the model answers {classes} classes: give the right file"
        )
    if classes > 0 and len(labels) != classes:
        logger.warning("labels=%s count=%d classes=%d: one apart, is there a background?", path, len(labels), classes)
    return labels


def _files_of(draft: BundleDraft) -> tuple[FileRef, ...]:
    refs = [ref for variant in draft.variants for ref in variant.files()]
    refs += [ref for ref in (draft.golden, draft.evaluation, draft.labels) if ref is not None]
    return tuple({ref.digest: ref for ref in refs}.values())


def _verify(path: Path, ref: FileRef) -> None:
    if not path.is_file():
        raise Rejected(f"the bundle lacks file {ref.digest}: copy the whole folder, or make it again")
    size = path.stat().st_size
    if size != ref.size_bytes or size > MAX_FILE_BYTES:
        raise BadDigest(f"{path} has {size} bytes instead of {ref.size_bytes}: make the bundle again")
    found = digest_of_file(path)
    if found != ref.digest:
        raise BadDigest(f"{path} has the digest {found} instead of its name's: make the bundle again")


def check_place(folder: Path, replace: bool) -> None:
    """Refuse a folder that a bundle may not take, before any work is done for it.

    Raises:
        Rejected: when something is there, and it is no bundle that may be replaced.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not replace:
        raise Rejected(f"{folder} exists already: give another folder, or remove it")
    if not (folder / "draft.json").is_file():
        raise Rejected(f"{folder} holds something that is no bundle, so it is not replaced: give another folder")


@contextmanager
def _building(folder: Path) -> Iterator[Path]:
    """Give a folder beside `folder`, which is gone afterwards unless it was renamed."""
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    building.chmod(0o755)
    try:
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
