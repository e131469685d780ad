"""Whatever a model does to the child process, the parent answers with an error that names the step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from regatta_fleet.optimize import steps
from regatta_fleet.optimize.evaluate import answers_of
from regatta_fleet.optimize.model_file import model_bytes, write_model
from regatta_fleet.optimize.steps import Answers, Check, Prune, run_step
from regatta_protocol.errors import Rejected
from small_models import plain_chain, write_samples_file, write_tree


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


def test_memory_without_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_tree(tmp_path / "m.tflite", plain_chain())
    samples = write_samples_file(tmp_path / "s.npz", 60_000, 8, 8, 1)
    monkeypatch.setattr(steps, "_MEMORY_BYTES", 1 << 27)

    with pytest.raises(Rejected, match=r"answers of .*m\.tflite"):
        run_step(Answers(model=str(model), samples=str(samples), output=str(tmp_path / "a.npz")))


def test_answers_are_real_values(tmp_path: Path) -> None:
    model = tmp_path / "m.tflite"
    write_model(plain_chain(), model)
    samples = write_samples_file(tmp_path / "s.npz", 6, 8, 8, 1)

    answers = answers_of(model, samples)

    assert answers.shape == (6, 5)
    assert answers.sum(1) == pytest.approx(np.ones(6), abs=1e-5)
