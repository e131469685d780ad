"""Distillation, sparsity and quantization-aware training do what their papers say, on models small enough to watch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'regatta-edge[train]'")

from regatta_fleet.optimize.activations import record  # noqa: E402
from regatta_fleet.optimize.answers import real_answers  # noqa: E402
from regatta_fleet.optimize.model_file import (  # noqa: E402
    ModelTree,
    constant,
    model_bytes,
    parse_model,
    set_constant,
    write_model,
)
from regatta_fleet.optimize.prune.coupling import channel_groups  # noqa: E402
from regatta_fleet.optimize.prune.filters import prune_filters  # noqa: E402
from regatta_fleet.optimize.quantize.engine import Source  # noqa: E402
from regatta_fleet.optimize.quantize.recipes import rounded_int4_recipe  # noqa: E402
from regatta_fleet.optimize.samples import Samples  # noqa: E402
from regatta_fleet.optimize.train.bridge import load_network  # noqa: E402
from regatta_fleet.optimize.train.distill import distill  # noqa: E402
from regatta_fleet.optimize.train.imitation import round_weights, weight_scale  # noqa: E402
from regatta_fleet.optimize.train.options import FitOptions, epochs_within  # noqa: E402
from regatta_fleet.optimize.train.quantize import train_quantized  # noqa: E402
from regatta_fleet.optimize.train.sparsity import sparsify  # noqa: E402
from regatta_fleet.optimize.train.taylor import taylor_scores  # noqa: E402
from regatta_fleet.optimize.train.teaching import Blend, distillation_loss, teach  # noqa: E402
from regatta_protocol.errors import Rejected  # noqa: E402
from regatta_runtimes.worker.score import snr_db  # noqa: E402
from tiny_models import Floats, depthwise_chain, normal, plain_chain  # noqa: E402

Doubles = npt.NDArray[np.float64]

QUICK = FitOptions(epochs=8, learning_rate=1e-2, mixed=False)


def _samples(count: int = 64, seed: int = 3) -> Samples:
    return Samples(normal(count, 8, 8, 1, seed=seed, scale=1.0))


def _outputs(model: ModelTree, samples: Floats) -> Floats:
    output = int(model.subgraphs[0].outputs[0])
    return record(model_bytes(model), samples, [output])[output]


def test_the_loss_is_hintons() -> None:
    """(1 − a)·CE + a·T²·KL(teacher‖student), computed here by hand."""
    student, teacher = np.array([[1.0, 0.0, -1.0]]), np.array([[0.5, 1.5, 0.0]])
    targets, a, t = np.array([[0.0, 1.0, 0.0]]), 0.3, 4.0

    def soft(
        values: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        found: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = np.exp(values) / np.exp(values).sum()
        return found

    p, q = soft(teacher / t), soft(student / t)
    wanted = (1 - a) * -math.log(soft(student)[0, 1]) + a * t**2 * float((p * np.log(p / q)).sum())

    given, guide, labels = (torch.from_numpy(values) for values in (student, teacher, targets))
    found = distillation_loss(given, guide, labels, Blend(a, t))

    assert float(found) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("blend", [Blend(0.5), Blend(1.0)])
def test_a_pruned_student_comes_nearer_to_its_teacher(blend: Blend) -> None:
    model = plain_chain()
    student, teacher = load_network(prune_filters(model, 0.5).model), load_network(model)
    samples = torch.from_numpy(_samples().x)

    def distance() -> float:
        with torch.no_grad():
            loss = distillation_loss(
                student.logits(samples), teacher.logits(samples), teacher(samples), Blend(1.0, 1.0)
            )
        return float(loss)

    before = distance()
    teach(
        student.logits, list(student.parameters()), teacher.logits, samples.numpy(), None,
        blend=blend, options=QUICK, seed=0,
    )  # fmt: skip

    assert distance() < 0.8 * before


def test_a_distilled_student_is_told_beside_the_one_without_a_teacher() -> None:
    model = plain_chain()
    student = prune_filters(model, 0.5).model
    told: list[tuple[str, float]] = []

    found = distill(
        student,
        model,
        _samples(),
        _samples(32, seed=4),
        options=QUICK,
        blends=(Blend(0.5), Blend(1.0)),
        seeds=(0, 1),
        progress=lambda words, share: told.append((words, share)),
    )

    assert len(found.with_teacher.values) == 2
    assert found.without_teacher is not None and len(found.without_teacher.values) == 2
    assert found.with_teacher.mean > found.untrained
    assert (found.tried, found.held_out) == (2, 32)
    assert found.blend in (Blend(0.5), Blend(1.0))
    check = normal(50, 8, 8, 1, seed=5, scale=1.0)
    wanted = _outputs(model, check)
    assert snr_db([_outputs(parse_model(found.content), check)], [wanted]) > snr_db(
        [_outputs(student, check)], [wanted]
    )
    assert [share for _, share in told] == sorted(share for _, share in told)


def test_the_same_seed_gives_the_same_student() -> None:
    model = plain_chain()
    pruned, teacher = prune_filters(model, 0.5).model, load_network(model)

    def losses(seed: int) -> tuple[float, ...]:
        student = load_network(pruned)
        options = FitOptions(epochs=2, learning_rate=1e-2, mixed=True)
        return teach(
            student.logits, list(student.parameters()), teacher.logits, _samples().x, None,
            blend=Blend(1.0), options=options, seed=seed,
        )  # fmt: skip

    assert losses(1) == losses(1) != losses(2)


def test_a_model_without_classes_learns_by_squared_error() -> None:
    model = depthwise_chain()
    samples = Samples(normal(48, 8, 8, 2, seed=3, scale=1.0))

    found = distill(prune_filters(model, 0.25).model, model, samples, samples, options=QUICK, seeds=(0,))

    assert (found.blend, found.without_teacher) == (None, None)
    assert found.with_teacher.mean > found.untrained


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (_samples(3), "3 samples to train on"),
        (Samples(_samples().x, np.full(64, 5)), "labels are 5 to 5, the model has classes 0 to 4"),
    ],
)
def test_samples_that_cannot_teach_are_refused(samples: Samples, words: str) -> None:
    with pytest.raises(Rejected, match=words):
        distill(plain_chain(), plain_chain(), samples, samples, options=QUICK, seeds=(0,))


def test_training_that_diverges_is_refused() -> None:
    with pytest.raises(Rejected, match="diverged"):
        distill(
            prune_filters(plain_chain(), 0.5).model,
            plain_chain(),
            _samples(),
            _samples(),
            options=FitOptions(epochs=30, learning_rate=1e30),
            seeds=(0,),
        )


@pytest.mark.parametrize("make", [lambda: Blend(1.5), lambda: Blend(0.5, 0.0), lambda: FitOptions(epochs=0)])
def test_settings_that_cannot_be_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(Rejected, match="cannot"):
        make()


def test_big_models_train_for_fewer_epochs() -> None:
    assert epochs_within(40, 2_600_000, 250) == 40
    assert epochs_within(40, 300_000_000, 250) == 2


def test_sparsity_reaches_its_target_and_beats_one_shot() -> None:
    from regatta_fleet.optimize.prune.weights import prune_weights

    model, samples, check = plain_chain(), _samples(), normal(50, 8, 8, 1, seed=5, scale=1.0)

    trained = sparsify(model, samples, 0.6, options=FitOptions(epochs=60, learning_rate=1e-2))

    assert trained.sparsity == pytest.approx(0.6, abs=0.01)
    wanted = _outputs(model, check)
    once = prune_weights(model, sparsity=0.6)
    assert snr_db([_outputs(parse_model(trained.content), check)], [wanted]) > snr_db(
        [_outputs(once.model, check)], [wanted]
    )


@pytest.mark.parametrize("labelled", [False, True])
def test_a_filter_without_influence_scores_lowest_however_big_it_is(labelled: bool) -> None:
    """Its consumers take nothing of it, so its norm says nothing."""
    model = plain_chain()
    group = next(group for group in channel_groups(model) if group.fixed is None)
    consumer = group.consumers[0].weights
    tensors = model.subgraphs[0].tensors
    weights, behind = constant(model, tensors[group.filters[0].tensor]), constant(model, tensors[consumer.tensor])
    assert weights is not None and behind is not None
    weights[2] *= 10
    behind[..., 2] = 0
    set_constant(model, tensors[group.filters[0].tensor], weights)
    set_constant(model, tensors[consumer.tensor], behind)
    samples = _samples()
    given = Samples(samples.x, np.arange(len(samples)) % 5) if labelled else samples

    scores = taylor_scores(model, given)(group)

    assert int(np.argmin(scores)) == 2
    assert 2 not in prune_filters(model, 0.13, taylor_scores(model, given)).slimmed[0].kept


@pytest.mark.parametrize("bits", [4, 8])
def test_rounded_weights_keep_their_scale(bits: int) -> None:
    """Rounding again changes nothing when the greatest weight gives the scale: what a min-max quantizer will do."""
    weights = torch.from_numpy(normal(6, 3, 3, 4, seed=1))

    rounded = round_weights(weights, 0, bits)

    levels = rounded / weight_scale(weights, 0, bits)
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert torch.all(levels.round().abs().amax((1, 2, 3)) == 2 ** (bits - 1) - 1)
    assert len(torch.unique(levels[0].round())) <= 2**bits - 1


def test_gradients_pass_the_rounding() -> None:
    weights = torch.nn.Parameter(torch.from_numpy(normal(4, 5, seed=1)))

    (round_weights(weights, 0, 4) * 3.0).sum().backward()

    assert torch.equal(weights.grad, torch.full((4, 5), 3.0))


def test_the_int4_file_is_the_network_that_was_trained(tmp_path: Path) -> None:
    """To float32's rounding, and nearer to the float model than int4 by least squared error."""
    model, samples, check = plain_chain(), _samples(), normal(50, 8, 8, 1, seed=5, scale=1.0)
    trained = train_quantized(
        model, model, samples, "int4-weights", options=FitOptions(epochs=20, learning_rate=3e-3, mixed=False)
    )
    files = {"trained": Source(trained.model).quantize(rounded_int4_recipe()).content}
    files["after training"] = Source(model).quantize_by("int4-weights").content
    answers = {}
    for name, content in files.items():
        (tmp_path / "m.tflite").write_bytes(content)
        answers[name] = real_answers(tmp_path / "m.tflite", check)

    assert answers["trained"] == pytest.approx(_outputs(trained.model, check), abs=1e-5)
    wanted = _outputs(model, check)
    assert snr_db([answers["trained"]], [wanted]) > snr_db([answers["after training"]], [wanted])


def test_int8_training_does_not_lead_away_from_the_model(tmp_path: Path) -> None:
    model, samples = plain_chain(), _samples()
    trained = train_quantized(model, model, samples, "int8", options=FitOptions(8, learning_rate=3e-4, mixed=False))
    source = Source(trained.model)
    source.calibrate(samples.x)
    path = tmp_path / "m.tflite"
    path.write_bytes(source.quantize_by("int8").content)
    write_model(model, tmp_path / "float.tflite")

    answers = real_answers(path, samples.x)

    assert snr_db([answers], [real_answers(tmp_path / "float.tflite", samples.x)]) > 25
