"""Whatever a model does to the child process, the parent answers with an error that names the step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from regatta_fleet.optimize.evaluate import answers_of
from regatta_fleet.optimize.model_builder import ModelBuilder
from regatta_fleet.optimize.model_file import model_bytes, write_model
from regatta_fleet.optimize.steps import Answers, Check, Prune, Quantize, Search, run_step
from regatta_protocol.errors import Rejected
from tiny_models import depthwise_chain, normal, plain_chain, write_samples_file, write_tree


def test_a_check_counts_the_models_work(tmp_path: Path) -> None:
    model = write_tree(tmp_path / "m.tflite", plain_chain(8))

    result = run_step(Check(model=str(model), output=str(tmp_path / "n.tflite")))

    assert result.cost is not None
    assert result.cost.macs == 8 * 8 * 8 * 9 + 4 * 4 * 6 * 72 + 24 * 5
    assert (tmp_path / "n.tflite").is_file()


def test_a_refusal_in_the_child_is_one_here(tmp_path: Path) -> None:
    model = write_tree(tmp_path / "m.tflite", plain_chain(1))
    samples = write_samples_file(tmp_path / "s.npz", 4, 28, 28, 1)

    with pytest.raises(Rejected, match=r"\[28, 28, 1\]"):
        run_step(Check(model=str(model), samples=str(samples), output=str(tmp_path / "n.tflite")))


def test_a_runtime_that_refuses_the_model_is_named(tmp_path: Path) -> None:
    model = plain_chain()
    model.subgraphs[0].operators[0].inputs = model.subgraphs[0].operators[0].inputs[:1]  # a convolution without weights
    (tmp_path / "m.tflite").write_bytes(model_bytes(model))
    samples = write_samples_file(tmp_path / "s.npz", 4, 8, 8, 1)

    with pytest.raises(Rejected):
        run_step(Answers(model=str(tmp_path / "m.tflite"), samples=str(samples), output=str(tmp_path / "a.npz")))


def test_a_step_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    model = write_tree(tmp_path / "m.tflite", plain_chain())
    samples = write_samples_file(tmp_path / "s.npz", 4, 8, 8, 1)
    step = Prune(
        model=str(model),
        samples=str(samples),
        held_back=str(samples),
        output=str(tmp_path / "p.tflite"),
        shares=(0.5,),
        max_drop=0.02,
    )

    with pytest.raises(Rejected, match="took over 0 s"):
        run_step(step, timeout_s=0.01)

    assert not (tmp_path / "p.tflite").exists()


def test_memory_without_end_is_an_error(tmp_path: Path) -> None:
    model = write_tree(tmp_path / "m.tflite", plain_chain())
    samples = write_samples_file(tmp_path / "s.npz", 60_000, 8, 8, 1)
    step = Answers(model=str(model), samples=str(samples), output=str(tmp_path / "a.npz"))

    with pytest.raises(Rejected, match=r"answers of .*m\.tflite"):
        run_step(step, memory_bytes=1 << 27)


def test_answers_are_real_values(tmp_path: Path) -> None:
    model = tmp_path / "m.tflite"
    write_model(plain_chain(), model)
    samples = write_samples_file(tmp_path / "s.npz", 6, 8, 8, 1)

    answers = answers_of(model, samples)

    assert answers.shape == (6, 5)
    assert answers.sum(1) == pytest.approx(np.ones(6), abs=1e-5)


def test_several_schemes_are_made_by_one_child(tmp_path: Path) -> None:
    model = write_tree(tmp_path / "m.tflite", plain_chain())
    samples = write_samples_file(tmp_path / "s.npz", 20, 8, 8, 1)
    outputs = {name: str(tmp_path / f"{name}.tflite") for name in ("int8", "float16", "int8-float-stem")}

    made = run_step(Quantize.model_validate({"model": str(model), "samples": str(samples), "outputs": outputs})).made

    assert [one.scheme for one in made] == list(outputs)
    assert all(one.reason is None and Path(outputs[one.scheme]).is_file() for one in made)
    assert [layer.precision for layer in made[2].layers] == ["float32", "int8", "int8"]
    assert "1 of 3 layers left in float32" in made[2].notes


def test_a_scheme_that_is_the_same_as_another_is_left_out(tmp_path: Path) -> None:
    """No layer of this model is over a single channel."""
    model = write_tree(tmp_path / "m.tflite", depthwise_chain())
    samples = write_samples_file(tmp_path / "s.npz", 20, 8, 8, 2)
    outputs = {name: str(tmp_path / f"{name}.tflite") for name in ("int8", "int8-unfolded", "int8-float-stem")}

    made = run_step(Quantize.model_validate({"model": str(model), "samples": str(samples), "outputs": outputs})).made

    assert [one.scheme for one in made] == ["int8"]


def test_a_folded_stride_is_told_and_the_file_without_it_is_there(tmp_path: Path) -> None:
    builder = ModelBuilder("gray")
    place = builder.conv("a", builder.input("x", (1, 8, 8, 1)), normal(8, 5, 5, 1), normal(8), (1, 4, 4, 8), stride=2)
    model = write_tree(tmp_path / "m.tflite", builder.finish([place]))
    samples = write_samples_file(tmp_path / "s.npz", 20, 8, 8, 1)
    outputs = {name: str(tmp_path / f"{name}.tflite") for name in ("int8", "int8-unfolded")}

    made = run_step(Quantize.model_validate({"model": str(model), "samples": str(samples), "outputs": outputs})).made

    assert [(one.scheme, any("SPACE_TO_DEPTH" in note for note in one.notes)) for one in made] == [
        ("int8", True),
        ("int8-unfolded", False),
    ]
    assert (answers_of(Path(outputs["int8"]), samples) == answers_of(Path(outputs["int8-unfolded"]), samples)).all()


def test_a_search_tells_each_layer(tmp_path: Path) -> None:
    model = write_tree(tmp_path / "m.tflite", depthwise_chain())
    samples = write_samples_file(tmp_path / "s.npz", 40, 8, 8, 2, classes=4)
    output = tmp_path / "mixed.tflite"

    made = run_step(Search(model=str(model), samples=str(samples), output=str(output), max_drop=1.0)).made[0]

    assert output.is_file()
    assert [(layer.name, layer.precision) for layer in made.layers] == [
        ("a", "int4"),
        ("w", "int8"),
        ("b", "int4"),
        ("d", "int4"),
    ]
    assert made.layers[0].int4_snr_db is not None and made.layers[1].int4_snr_db is None
