"""A bundle of a user's bare .tflite or .onnx file as it is, whatever its dtype, measured on this machine."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from regatta_fleet.models.bundle import Bundle, check_place, file_ref, write_bundle
from regatta_fleet.models.bundle_source import BundleSource, check_given, golden_count, input_image, read_labels
from regatta_fleet.models.labels import labels_text
from regatta_fleet.models.overlay import Models, overlay_of, with_overlay
from regatta_fleet.optimize.samples import check_labels, check_shape, read_samples, write_samples
from regatta_fleet.schemas import BundleDraft
from regatta_protocol.durable import write_durably
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import Digest
from regatta_protocol.manifest import FileRef, Variant
from regatta_protocol.processing import Processing, as_json
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.worker.golden import write_golden
from regatta_runtimes.worker.inspect import ModelFacts, inspect_model
from regatta_runtimes.worker.measure import measure_file

__all__ = ["bundle_from_model"]

logger = logging.getLogger(__name__)


def bundle_from_model(
    model: Path,
    output: Path,
    source: BundleSource = BundleSource(),  # noqa: B008 - frozen
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
