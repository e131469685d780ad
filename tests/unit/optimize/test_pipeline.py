"""From a float model to a bundle of measured variants, and what stands in the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from regatta_fleet.examples.digits import LABELS, MODEL, data
from regatta_fleet.models.bundle import Bundle
from regatta_fleet.models.bundle_source import BundleSource
from regatta_fleet.optimize.model_file import constant, set_constant
from regatta_fleet.optimize.pipeline import optimize
from regatta_fleet.optimize.report import OptimizeReport
from regatta_protocol.codec import decode
from regatta_protocol.errors import Rejected
from regatta_protocol.manifest import Policy
from shared_data import shared_file
from tiny_models import plain_chain, write_samples_file, write_tree


def test_digits_become_variants(tmp_path: Path) -> None:
    calibration, evaluation = data.calibration(tmp_path / "c.npz"), data.evaluation(tmp_path / "e.npz")
    source = BundleSource(labels=LABELS, evaluation=evaluation)
    told: list[tuple[str, float]] = []

    report = optimize(
        MODEL, calibration, tmp_path / "bundle", source, progress=lambda message, share: told.append((message, share))
    )

    original, int8, pruned = (report.variant(name) for name in ("float32", "int8", "int8-pruned"))
    assert original.size_bytes and int8.size_bytes and pruned.size_bytes
    assert int8.size_bytes < 0.35 * original.size_bytes
    assert pruned.size_bytes < 0.5 * int8.size_bytes
    for variant in (original, int8, pruned):
        assert variant.accuracy is not None and variant.accuracy.value > 0.965
        assert variant.latency is not None
        assert variant.runs[0].runtime == "litert"
    bundle = Bundle.open(tmp_path / "bundle")
    names = [variant.name for variant in bundle.draft.variants]
    assert names == ["float32", "int8", "int8-float-stem", "int8-weights", "float16", "int8-pruned"]
    assert bundle.draft.labels is not None and bundle.draft.evaluation is not None
    assert bundle.draft.variants[1].precision == "int8"
    assert decode(OptimizeReport, (tmp_path / "bundle/report.json").read_bytes()) == report
    assert "| int8-pruned |" in (tmp_path / "bundle/report.md").read_text()
    shares = [share for _, share in told]
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_keyword_spotting_loses_little(tmp_path: Path) -> None:
    """In int8, and with a precision for each layer, which the report tells."""
    report = optimize(
        shared_file("mlperf_tiny/kws_float32.tflite"),
        shared_file("mlperf_tiny/kws01_dev.npz"),
        tmp_path / "bundle",
        variants=("int8", "mixed"),
    )

    original, int8, mixed = (report.variant(name) for name in ("float32", "int8", "mixed"))
    assert original.accuracy is not None and original.accuracy.value > 0.9
    for variant, size in ((int8, 0.45), (mixed, 0.36)):
        assert variant.lost is not None and variant.gained is not None
        assert variant.lost - variant.gained <= 5  # of 250: the budget of 2 points
        assert variant.size_bytes and original.size_bytes
        assert variant.size_bytes < size * original.size_bytes
    assert {layer.precision for layer in mixed.layers} == {"int4", "int8"}
    page = (tmp_path / "bundle/report.md").read_text()
    assert "Layers of mixed" in page and "| DEPTHWISE_CONV_2D | 576 | int8 |" in page


def test_a_budget_that_nothing_keeps_leaves_the_float_model(tmp_path: Path) -> None:
    """A random model's answers change with any rounding; refused variants stay in the report with the reason."""
    model = write_tree(tmp_path / "m.tflite", plain_chain())
    samples = write_samples_file(tmp_path / "s.npz", 60, 8, 8, 1, classes=5)
    source = BundleSource(policy=Policy(max_accuracy_drop=0.0))

    report = optimize(model, samples, tmp_path / "bundle", source, variants=("int8-pruned",))

    refused = [variant for variant in report.variants if not variant.accepted]
    assert report.variants[0].name == "float32"
    assert refused and all(variant.reason for variant in refused)
    assert "Refused:" in (tmp_path / "bundle/report.md").read_text()


def test_without_labels_outputs_are_compared(tmp_path: Path) -> None:
    model = write_tree(tmp_path / "m.tflite", plain_chain())
    samples = write_samples_file(tmp_path / "s.npz", 60, 8, 8, 1)

    report = optimize(model, samples, tmp_path / "bundle", variants=("int8",))

    assert not report.labelled
    assert report.variant("int8").accuracy is None
    assert (report.variant("int8").snr_db or 0) > 10
    assert Bundle.open(tmp_path / "bundle").draft.evaluation is None


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    model = shared_file("mlperf_tiny/kws_ref_model.tflite")

    with pytest.raises(Rejected, match="quantized already"):
        optimize(model, shared_file("mlperf_tiny/kws01_dev.npz"), tmp_path / "bundle")

    assert not (tmp_path / "bundle").exists()


def test_weights_that_are_nan_are_refused(tmp_path: Path) -> None:
    tree = plain_chain()
    tensor = tree.subgraphs[0].tensors[tree.subgraphs[0].operators[0].inputs[1]]
    values = constant(tree, tensor)
    assert values is not None
    set_constant(tree, tensor, np.full_like(values, np.nan))
    model = write_tree(tmp_path / "m.tflite", tree)

    with pytest.raises(Rejected, match="NaN"):
        optimize(model, write_samples_file(tmp_path / "s.npz", 8, 8, 8, 1), tmp_path / "bundle")


def test_samples_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"\[28, 28, 1\]"):
        optimize(MODEL, write_samples_file(tmp_path / "s.npz", 8, 28, 28, 1), tmp_path / "bundle")

    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]


def test_a_taken_place_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/precious.txt").write_text("mine")
    told: list[str] = []

    with pytest.raises(Rejected, match="exists already"):
        optimize(
            MODEL,
            write_samples_file(tmp_path / "s.npz", 8, 8, 8, 1),
            tmp_path / "bundle",
            progress=lambda message, share: told.append(message),
        )

    assert told == []
