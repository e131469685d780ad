"""Pruning by multiply-accumulates takes them where the output feels it least."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from regatta_fleet.optimize.activations import record
from regatta_fleet.optimize.cost import count_macs
from regatta_fleet.optimize.model_file import ModelTree, constant, model_bytes, parse_model, read_model, set_constant
from regatta_fleet.optimize.prune.allocation import allocate, step_of
from regatta_fleet.optimize.prune.budget import prune_macs
from regatta_fleet.optimize.prune.contest import Contest
from regatta_fleet.optimize.prune.coupling import channel_groups
from regatta_fleet.optimize.prune.filters import prune_filters, without_channels
from regatta_fleet.optimize.prune.importance import weight_importance
from regatta_fleet.optimize.prune.reconstruction import Removal
from regatta_fleet.optimize.prune.refit import refit
from regatta_fleet.optimize.samples import Samples, read_samples
from regatta_fleet.optimize.train import available
from regatta_fleet.optimize.train.available import require_torch
from regatta_protocol.errors import Misuse
from regatta_runtimes.worker.score import snr_db
from shared_data import shared_file
from tiny_models import Floats, branches, depthwise_chain, normal, plain_chain, residual


def _outputs(model: ModelTree, samples: Floats) -> Floats:
    output = int(model.subgraphs[0].outputs[0])
    return record(model_bytes(model), samples, [output])[output]


@pytest.mark.parametrize("build", [plain_chain, depthwise_chain, residual, branches])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_at_least_the_share_goes_and_the_model_runs(build: Callable[[], ModelTree], share: float) -> None:
    model = build()
    samples = normal(24, *(int(size) for size in model.subgraphs[0].tensors[0].shape[1:]), seed=3, scale=1.0)

    pruned = prune_macs(model, share, samples=samples)
    refit(model, pruned, samples)

    left = count_macs(parse_model(model_bytes(pruned.model))) / count_macs(model)
    assert 0.1 < left <= 1 - share
    assert _outputs(pruned.model, samples).shape == _outputs(model, samples).shape


def test_the_counted_work_is_that_of_the_pruned_model() -> None:
    """The allocation counts by factors; taking the channels out must come to the same."""
    model = branches()
    groups = [group for group in channel_groups(model) if group.fixed is None]
    orders = [(group, Removal(np.arange(group.size - 1), np.full(group.size - 1, 0.1))) for group in groups]

    for share in (0.05, 0.3, 0.6):
        lost = allocate(model, orders, share)
        pruned = without_channels(model, [(group, np.arange(count)) for group, count in zip(groups, lost, strict=True)])
        assert count_macs(pruned.model) <= (1 - share) * count_macs(model)
        assert all(count % step_of(group.size) == 0 for group, count in zip(groups, lost, strict=True))


def test_a_group_that_the_output_does_not_feel_goes_first() -> None:
    """The last layer hardly listens to `b`; norms of its filters say nothing of it."""
    model = plain_chain()
    tensors = model.subgraphs[0].tensors
    groups = [group for group in channel_groups(model) if group.fixed is None]
    behind = groups[1].consumers[0].weights
    values = constant(model, tensors[behind.tensor])
    assert values is not None
    set_constant(model, tensors[behind.tensor], values * np.float32(1e-3))

    pruned = prune_macs(model, 0.1, samples=normal(40, 8, 8, 1, seed=3, scale=1.0))

    assert [group.size for group in pruned.slimmed] == [6]


def test_a_real_model_keeps_more_than_with_a_share_of_every_group() -> None:
    """KWS: both take a quarter or more of the multiply-accumulates."""
    model = read_model(shared_file("mlperf_tiny/kws_float32.tflite"))
    x = read_samples(shared_file("mlperf_tiny/kws01_dev.npz")).x
    fit, check = x[:120], x[120:240]
    wanted = _outputs(model, check)
    everywhere, chosen = prune_filters(model, 0.14, "reconstruction", fit), prune_macs(model, 0.25, samples=fit)
    for pruned in (everywhere, chosen):
        refit(model, pruned, fit)

    assert count_macs(chosen.model) < 0.75 * count_macs(model) < count_macs(everywhere.model) * 1.05
    assert snr_db([_outputs(chosen.model, check)], [wanted]) > snr_db([_outputs(everywhere.model, check)], [wanted]) + 1


@pytest.mark.parametrize(("file", "way"), [("kws_float32", "where the output"), (None, "of every group")])
def test_the_better_way_is_kept_at_equal_work(file: str | None, way: str) -> None:
    """KWS's layers differ in what they mean to the output; those of the residual model matter alike."""
    model = residual() if file is None else read_model(shared_file(f"mlperf_tiny/{file}.tflite"))
    samples = Samples(normal(60, 4, 4, 1, seed=3, scale=1.0))
    if file is not None:
        samples = read_samples(shared_file("mlperf_tiny/kws01_dev.npz")).chosen(np.arange(500) < 180)
    held = np.arange(len(samples)) % 3 == 2
    fit, held_back = samples.x[~held], samples.chosen(held)

    best, words = Contest(model, fit, held_back, 0.02).winner(0.125)

    uniform = prune_filters(model, 0.125, "reconstruction", fit)
    assert f"pruned {way}" in words[0] and "on samples held back" in words[-1]
    assert best.reason is None
    assert count_macs(best.model) <= 1.02 * count_macs(uniform.model)


def test_the_filter_nearest_to_the_median_goes_though_it_is_not_the_smallest() -> None:
    model = plain_chain(4)
    group = next(group for group in channel_groups(model) if group.fixed is None)
    weights = np.stack([np.full((3, 3, 1), value, np.float32) for value in (0.5, 2.0, 2.2, 4.0)])
    set_constant(model, model.subgraphs[0].tensors[group.filters[0].tensor], weights)

    assert int(np.argmin(weight_importance(model, group, "l2"))) == 0
    assert int(np.argmin(weight_importance(model, group, "geometric-median"))) in (1, 2)


def test_without_samples_it_is_a_misuse() -> None:
    with pytest.raises(Misuse, match="needs samples"):
        prune_macs(plain_chain(), 0.25)


def test_a_single_filter_stays() -> None:
    pruned = prune_macs(plain_chain(1), 0.2, samples=normal(24, 8, 8, 1, seed=3, scale=1.0))

    assert [group.size for group in pruned.slimmed] == [6]


def test_without_pytorch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "has_torch", lambda: False)

    with pytest.raises(Misuse, match=r"regatta-edge\[train\]"):
        require_torch()
