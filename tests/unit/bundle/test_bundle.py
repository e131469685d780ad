"""A bundle appears whole, is verified when opened, and can be made of a user's bare model."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from emulated_fpga import device_tree
from regatta_fleet.examples.digits import LABELS, MODEL, data
from regatta_fleet.models.bare_model import bundle_from_model
from regatta_fleet.models.bundle import Bundle, file_ref, write_bundle
from regatta_fleet.models.bundle_source import BundleSource, golden_count
from regatta_fleet.models.overlay import OverlaySource
from regatta_fleet.schemas import BundleDraft
from regatta_protocol.errors import BadDigest, Rejected
from regatta_protocol.ids import Digest, digest_of_bytes
from regatta_protocol.manifest import FileRef, Variant
from regatta_protocol.values import TensorSpec
from regatta_runtimes.fpga.fdt import bitstream_name
from shared_data import shared_file
from tiny_models import dense_model, write_samples_file
from tiny_onnx import dense_onnx

_SPEC = TensorSpec(name="x", dtype="float32", shape=(1, 2))


def _draft(tmp_path: Path) -> tuple[BundleDraft, dict[Digest, Path]]:
    paths = {}
    for name in ("model", "golden"):
        (tmp_path / name).write_bytes(name.encode() * 100)
        paths[name] = tmp_path / name
    refs = {name: file_ref(path) for name, path in paths.items()}
    variant = Variant(name="float32", file=refs["model"], precision="float32", inputs=(_SPEC,), outputs=(_SPEC,))
    draft = BundleDraft(variants=(variant,), golden=refs["golden"])
    return draft, {refs[name].digest: path for name, path in paths.items()}


def test_what_was_written_is_opened(tmp_path: Path) -> None:
    draft, files = _draft(tmp_path)

    write_bundle(tmp_path / "bundle", draft, files, reports={"report.md": b"fine"})

    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.draft == draft
    assert [bundle.path_of(ref).read_bytes()[:3] for ref in bundle.files()] == [b"mod", b"gol"]
    assert (tmp_path / "bundle/report.md").read_bytes() == b"fine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "golden", "model"]


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    draft, files = _draft(tmp_path)
    bundle = write_bundle(tmp_path / "bundle", draft, files)
    path = bundle.path_of(draft.golden)
    path.write_bytes(b"X" + path.read_bytes()[1:])

    with pytest.raises(BadDigest, match="instead of"):
        Bundle.open(tmp_path / "bundle")


def test_a_cut_off_file_is_found(tmp_path: Path) -> None:
    draft, files = _draft(tmp_path)
    bundle = write_bundle(tmp_path / "bundle", draft, files)
    path = bundle.path_of(draft.golden)
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(BadDigest, match="599 bytes instead of 600"):
        Bundle.open(tmp_path / "bundle")


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    draft, files = _draft(tmp_path)
    bundle = write_bundle(tmp_path / "bundle", draft, files)
    bundle.path_of(draft.golden).unlink()

    with pytest.raises(Rejected, match="lacks file"):
        Bundle.open(tmp_path / "bundle")


@pytest.mark.parametrize("content", [b"", b"{", b'{"variants": []}', b"[]", b"\xff"])
def test_a_draft_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "draft.json").write_bytes(content)

    with pytest.raises(Rejected, match="BundleDraft"):
        Bundle.open(tmp_path)


def test_a_folder_without_a_draft_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="no bundle"):
        Bundle.open(tmp_path)


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    draft, files = _draft(tmp_path)
    lost = FileRef(digest=digest_of_bytes(b"elsewhere"), size_bytes=9)

    with pytest.raises(Rejected, match="was not given"):
        write_bundle(tmp_path / "bundle", draft.model_copy(update={"golden": lost}), files)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["golden", "model"]


def test_a_file_that_changed_since_leaves_nothing_behind(tmp_path: Path) -> None:
    draft, files = _draft(tmp_path)
    (tmp_path / "golden").write_bytes(b"other")

    with pytest.raises(BadDigest):
        write_bundle(tmp_path / "bundle", draft, files)

    assert not (tmp_path / "bundle").exists()


def test_only_a_bundle_is_replaced_and_only_when_asked(tmp_path: Path) -> None:
    draft, files = _draft(tmp_path)
    write_bundle(tmp_path / "bundle", draft, files, reports={"old.md": b"old"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/precious.txt").write_text("mine")

    with pytest.raises(Rejected, match="exists already"):
        write_bundle(tmp_path / "bundle", draft, files)
    with pytest.raises(Rejected, match="no bundle"):
        write_bundle(tmp_path / "mine", draft, files, replace=True)
    write_bundle(tmp_path / "bundle", draft, files, replace=True)

    assert not (tmp_path / "bundle/old.md").exists()
    assert (tmp_path / "mine/precious.txt").read_text() == "mine"


def test_a_bare_float_model_with_its_evaluation(tmp_path: Path) -> None:
    told: list[float] = []

    bundle = bundle_from_model(
        MODEL,
        tmp_path / "bundle",
        BundleSource(labels=LABELS, evaluation=data.evaluation(tmp_path / "e.npz")),
        progress=lambda message, share: told.append(share),
    )

    (variant,) = bundle.draft.variants
    assert (variant.name, bundle.draft.task) == ("float32", "classification")
    assert variant.accuracy is not None and variant.accuracy.value > 0.98
    assert variant.latency is not None
    assert bundle.draft.input is not None and bundle.draft.input["scale"] == pytest.approx(1 / 255)
    assert told == sorted(told) and told[-1] == 1.0
    with np.load(bundle.path_of(bundle.draft.golden)) as golden:
        assert golden["in.0"].shape[0] == golden["out.float32.0"].shape[0] == 16


def test_a_bare_uint8_picture_model(tmp_path: Path) -> None:
    """A pixel is its own quantized value."""
    bundle = bundle_from_model(
        shared_file("coral/mobilenet_v1_0.25_128_quant.tflite"),
        tmp_path / "bundle",
        BundleSource(
            labels=shared_file("coral/imagenet_labels.txt"),
            variants=(shared_file("coral/mobilenet_v1_0.25_128_quant_edgetpu.tflite"),),
        ),
    )

    assert [variant.name for variant in bundle.draft.variants] == ["uint8", "edgetpu"]
    assert bundle.draft.variants[1].requires == ("edgetpu",)
    assert bundle.draft.labels is not None
    labels = bundle.path_of(bundle.draft.labels).read_text().splitlines()
    assert labels[:2] == ["background", "tench, Tinca tinca"]
    spec, picture = bundle.draft.variants[0].inputs[0], bundle.draft.input
    assert picture is not None and spec.scale is not None and spec.zero_point is not None
    pixels = np.arange(256)
    native = np.rint((pixels - picture["mean"]) * picture["scale"] / spec.scale + spec.zero_point)
    assert (native == pixels).all()


def test_an_onnx_file_beside_a_tflite_file(tmp_path: Path) -> None:
    """Each is inspected and measured by a runtime of its format, and both have golden outputs, which agree."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'regatta-edge[onnx]'")
    weights = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    bias = np.zeros(3, dtype=np.float32)
    (tmp_path / "net.tflite").write_bytes(dense_model(weights, bias))
    (tmp_path / "net.onnx").write_bytes(dense_onnx(weights, bias))

    bundle = bundle_from_model(
        tmp_path / "net.tflite", tmp_path / "bundle", BundleSource(variants=(tmp_path / "net.onnx",))
    )

    variants = bundle.draft.variants
    assert [(variant.name, variant.precision) for variant in variants] == [
        ("float32", "float32"),
        ("onnx-float32", "float32"),
    ]
    assert variants[1].latency_setting == "onnx/onnx-float32/cpu/t1 where it was pushed"
    with np.load(bundle.path_of(bundle.draft.golden)) as golden:
        np.testing.assert_allclose(golden["out.float32.0"], golden["out.onnx-float32.0"], rtol=1e-5)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="imagenet_labels"):
        bundle_from_model(shared_file("coral/imagenet_labels.txt"), tmp_path / "bundle")

    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.tflite"
    path.write_bytes(MODEL.read_bytes()[:50_000])

    with pytest.raises(Rejected, match=r"cut\.tflite"):
        bundle_from_model(path, tmp_path / "bundle")


def test_labels_of_another_model_are_refused(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n")

    with pytest.raises(Rejected, match="2 labels, the model answers 10 classes"):
        bundle_from_model(MODEL, tmp_path / "bundle", BundleSource(labels=labels))


def test_labels_one_apart_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"label {chr(97 + place)}\n" for place in range(11)))

    with caplog.at_level(logging.WARNING):
        bundle_from_model(MODEL, tmp_path / "bundle", BundleSource(labels=labels))

    assert "count=11 classes=10" in caplog.text


@pytest.mark.parametrize(
    ("shape", "classes", "words"),
    [((6, 28, 28, 1), 10, r"\[28, 28, 1\]"), ((24, 8, 8, 1), 12, "label 11"), ((6, 8, 8, 1), None, "no labels 'y'")],
)
def test_an_evaluation_set_that_does_not_fit_is_refused(
    tmp_path: Path, shape: tuple[int, ...], classes: int | None, words: str
) -> None:
    evaluation = write_samples_file(tmp_path / "e.npz", *shape, classes=classes)

    with pytest.raises(Rejected, match=words):
        bundle_from_model(MODEL, tmp_path / "bundle", BundleSource(evaluation=evaluation))

    assert not (tmp_path / "bundle").exists()


def test_an_evaluation_set_with_nan_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", x=np.full((4, 8, 8, 1), np.nan, np.float32), y=np.arange(4))

    with pytest.raises(Rejected, match="NaN"):
        bundle_from_model(MODEL, tmp_path / "bundle", BundleSource(evaluation=tmp_path / "e.npz"))


def test_large_inputs_keep_fewer_golden_samples() -> None:
    small = TensorSpec(name="x", dtype="float32", shape=(1, 8, 8, 1))
    large = TensorSpec(name="x", dtype="uint8", shape=(1, 224, 224, 3))
    huge = TensorSpec(name="x", dtype="uint8", shape=(1, 4096, 4096, 3))

    assert [golden_count([spec]) for spec in (small, large, huge)] == [16, 3, 2]


def test_a_copied_bundle_is_as_good(tmp_path: Path) -> None:
    draft, files = _draft(tmp_path)
    write_bundle(tmp_path / "bundle", draft, files)

    shutil.copytree(tmp_path / "bundle", tmp_path / "copy")

    assert Bundle.open(tmp_path / "copy").draft == draft


def test_an_overlay_comes_along_with_a_variant_of_its_own(tmp_path: Path) -> None:
    """The model's file races on the processor and on the FPGA; the device tree names the bitstream by its content."""
    (tmp_path / "dpu.bit.bin").write_bytes(b"bits")
    (tmp_path / "dpu.dtbo").write_bytes(device_tree("dpu.bit.bin"))
    source = OverlaySource("dpu", tmp_path / "dpu.bit.bin", "mydpu", tmp_path / "dpu.dtbo", flags=1)

    bundle = bundle_from_model(MODEL, tmp_path / "bundle", BundleSource(overlay=source))

    plain, overlaid = bundle.draft.variants
    assert (plain.name, plain.requires, plain.overlay) == ("float32", (), None)
    assert (overlaid.name, overlaid.requires, overlaid.file) == ("dpu", ("mydpu",), plain.file)
    overlay = overlaid.overlay
    assert overlay is not None and overlay.dtbo is not None
    assert (overlay.delegate, overlay.flags, overlay.bitstream.size_bytes) == ("mydpu", 1, 4)
    named = bitstream_name(bundle.path_of(overlay.dtbo).read_bytes())
    assert named == f"regatta/{overlay.bitstream.digest}.bin"
    with np.load(bundle.path_of(bundle.draft.golden)) as golden:
        assert {"out.float32.0", "out.dpu.0"} <= set(golden)


@pytest.mark.parametrize(
    ("name", "bitstream", "tree", "words"),
    [
        ("dpu", b"", None, "0 bytes"),
        ("dpu", None, None, "is not a file"),
        ("dpu", b"bits", b"/dts-v1/;", r"dpu\.dtbo: .*cut off"),
        ("dpu", b"bits", b"/dts-v1/; /plugin/; / { a = <1>; b = <2>; };", r"dpu\.dtbo: .*dtc -@"),
        ("dpu", b"bits", None, r"dpu\.dtbo cannot be read"),
        ("float32", b"bits", None, "give the overlay another name"),
    ],
)
def test_a_bad_overlay_is_refused(
    tmp_path: Path, name: str, bitstream: bytes | None, tree: bytes | None, words: str
) -> None:
    """Empty, absent, no compiled device tree, a name that is taken: nothing is written."""
    if bitstream is not None:
        (tmp_path / "dpu.bit.bin").write_bytes(bitstream)
    if tree is not None:
        (tmp_path / "dpu.dtbo").write_bytes(tree)
    source = OverlaySource(name, tmp_path / "dpu.bit.bin", "mydpu", tmp_path / "dpu.dtbo")

    with pytest.raises(Rejected, match=words):
        bundle_from_model(MODEL, tmp_path / "bundle", BundleSource(overlay=source))

    assert not (tmp_path / "bundle").exists()
