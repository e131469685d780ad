"""Training runs in a child, writes its file or nothing, and says clearly why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs PyTorch: pip install 'regatta-edge[train]'")

from regatta_fleet.optimize.pipeline import optimize
from regatta_fleet.optimize.recipe.document import read_recipe
from regatta_fleet.optimize.recipe.run import RecipeRun, optimize_by_recipe
from regatta_fleet.optimize.train.steps import Distill, Sparsify, TrainQuantized, run_training
from regatta_protocol.errors import Rejected
from tiny_models import plain_chain, write_samples_file, write_tree


def _distill(folder: Path, **changes: object) -> Distill:
    given = {
        "model": str(write_tree(folder / "m.tflite", plain_chain())),
        "samples": str(write_samples_file(folder / "s.npz", 40, 8, 8, 1)),
        "held_back": str(write_samples_file(folder / "h.npz", 20, 8, 8, 1, seed=10)),
        "output": str(folder / "out.tflite"),
        "shares": (0.9, 0.25),
        "max_drop": 0.02,
    }
    return Distill.model_validate({**given, **changes})


def test_a_trained_bundle_tells_how_each_variant_was_made(tmp_path: Path) -> None:
    model = write_tree(tmp_path / "m.tflite", plain_chain())
    data = write_samples_file(tmp_path / "s.npz", 60, 8, 8, 1)

    report = optimize(model, data, tmp_path / "bundle", variants=("int8-trained", "int4-trained"))

    made = {variant.name: variant for variant in report.variants if variant.accepted}
    assert set(made) == {"float32", "int8-trained", "int4-trained"}
    assert any("trained to be" in step for step in made["int4-trained"].steps)
    assert {layer.precision for layer in made["int4-trained"].layers} == {"int4"}


def test_a_distilled_student_is_told_beside_the_one_without_a_teacher(tmp_path: Path) -> None:
    samples = str(write_samples_file(tmp_path / "l.npz", 24, 8, 8, 1, classes=5))
    step = _distill(tmp_path, samples=samples, held_back=samples, shares=(0.25,), max_drop=1.0)

    attempt = run_training(step).attempts[0]

    assert attempt.reason is None and (tmp_path / "out.tflite").is_file()
    assert any("with the teacher" in note and "without" in note and "untrained" in note for note in attempt.notes)


def test_memory_without_end_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"step distill of .*m\.tflite"):
        run_training(_distill(tmp_path), memory_bytes=1 << 28)

    assert not (tmp_path / "out.tflite").exists()


def test_an_operator_that_cannot_be_trained_is_named(tmp_path: Path) -> None:
    from regatta_fleet.optimize.model_builder import ModelBuilder
    from tiny_models import normal

    builder = ModelBuilder("floor")
    place = builder.input("x", (1, 4))
    place = builder.operator("FLOOR", [builder.dense("d", place, normal(3, 4), normal(3), (1, 3))], "y", (1, 3), None)
    step = TrainQuantized(
        model=str(write_tree(tmp_path / "m.tflite", builder.finish([place]))),
        samples=str(write_samples_file(tmp_path / "s.npz", 40, 4)),
        output=str(tmp_path / "out.tflite"),
        precision="int8",
    )

    with pytest.raises(Rejected, match="operator FLOOR, which makes 'y'"):
        run_training(step)

    assert not (tmp_path / "out.tflite").exists()


def test_labels_that_the_model_has_no_class_for_are_refused(tmp_path: Path) -> None:
    samples = tmp_path / "l.npz"
    np.savez(samples, x=np.zeros((20, 8, 8, 1), np.float32), y=np.full(20, 7))

    with pytest.raises(Rejected, match="labels are 7 to 7"):
        run_training(_distill(tmp_path, samples=str(samples)))


def test_zeros_that_save_too_little_are_refused(tmp_path: Path) -> None:
    given = _distill(tmp_path).model_dump(exclude={"kind"})

    attempts = run_training(Sparsify.model_validate({**given, "shares": (0.02,), "max_drop": 1.0})).attempts

    assert attempts[0].reason is not None and "bytes compressed" in attempts[0].reason
    assert not (tmp_path / "out.tflite").exists()


def test_a_recipe_distills_and_trains_to_be_quantized(tmp_path: Path) -> None:
    write_tree(tmp_path / "m.tflite", plain_chain())
    data = write_samples_file(tmp_path / "s.npz", 60, 8, 8, 1)
    (tmp_path / "r.yaml").write_text(
        "recipe: 1\nsteps: [{step: take, source: m.tflite}, {step: distill, shares: [2%]}, {step: qat}]\n"
    )
    run = RecipeRun(tmp_path / "bundle", data=data, cache=tmp_path / "cache")

    report = optimize_by_recipe(read_recipe(tmp_path / "r.yaml"), run, lambda message, share: None)

    assert {"float32", "distilled", "int8-trained-distilled"} <= {variant.name for variant in report.variants}
    assert all(variant.accepted or variant.reason for variant in report.variants)
