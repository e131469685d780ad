"""Weights pruned by magnitude: the smallest go, as many as were asked for, and compressed files are smaller."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_fleet.optimize.activations import record
from regatta_fleet.optimize.model_file import model_bytes, parse_model
from regatta_fleet.optimize.prune.weights import (
    Scope,
    magnitude_masks,
    packed_bytes,
    polynomial_sparsity,
    prune_weights,
)
from regatta_protocol.errors import Rejected
from tiny_models import normal, residual


@given(sparsity=st.floats(0, 0.99), seed=st.integers(0, 99))
def test_the_smallest_of_all_go_and_exactly_as_many_as_asked_for(sparsity: float, seed: int) -> None:
    """Small is meant against the tensor's own root mean square."""
    weights = {1: normal(5, 7, seed=seed), 4: normal(3, 2, 2, seed=seed + 1, scale=2.0)}

    masks = magnitude_masks(weights, sparsity=sparsity)

    relative = {tensor: np.abs(values) / np.sqrt((values**2).mean()) for tensor, values in weights.items()}
    gone = np.concatenate([relative[tensor][~masks[tensor]] for tensor in weights])
    kept = np.concatenate([relative[tensor][masks[tensor]] for tensor in weights])
    assert len(gone) == int(47 * sparsity)
    assert not len(gone) or gone.max() <= kept.min() * (1 + 1e-6)


def test_by_layer_each_layer_loses_the_same_share() -> None:
    masks = magnitude_masks({1: normal(10, 10), 2: normal(10, 10, scale=9.0)}, sparsity=0.3, scope="layer")

    assert [int((~mask).sum()) for mask in masks.values()] == [30, 30]


def test_a_threshold_keeps_what_reaches_it() -> None:
    masks = magnitude_masks({1: np.array([-0.5, 0.2, 0.3, 0.0], np.float32)}, threshold=0.25)

    assert masks[1].tolist() == [True, False, True, False]


def test_sparsity_rises_from_its_start_to_its_target_ever_more_slowly() -> None:
    values = [polynomial_sparsity(share, 0.8, initial=0.2) for share in np.linspace(0, 1, 11)]

    steps = np.diff(values)
    assert (values[0], values[-1]) == pytest.approx((0.2, 0.8))
    assert np.all(steps > 0) and np.all(np.diff(steps) < 0)
    assert polynomial_sparsity(7.0, 0.8) == 0.8


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_sparse_file_runs_and_travels_smaller(scope: Scope) -> None:
    model, samples = residual(), normal(4, 4, 4, 1, scale=1.0)

    pruned = prune_weights(model, sparsity=0.5, scope=scope)

    content = model_bytes(pruned.model)
    output = int(model.subgraphs[0].outputs[0])
    assert pruned.sparsity == pytest.approx(0.5, abs=0.01)
    assert len(content) == len(model_bytes(model))
    assert packed_bytes(content) < 0.75 * packed_bytes(model_bytes(model))
    assert np.isfinite(record(model_bytes(parse_model(content)), samples, [output])[output]).all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "either"),
        ({"sparsity": 0.5, "threshold": 0.1}, "either"),
        ({"sparsity": 1.0}, "share of 1.0"),
        ({"sparsity": float("nan")}, "share of nan"),
        ({"threshold": 0.0}, "threshold above 0"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, float], words: str) -> None:
    with pytest.raises(Rejected, match=words):
        magnitude_masks({1: normal(3)}, sparsity=given.get("sparsity"), threshold=given.get("threshold"))


def test_weights_that_are_nan_are_refused_by_tensor() -> None:
    with pytest.raises(Rejected, match="tensor 7: 1 of its weights are NaN"):
        magnitude_masks({7: np.array([1.0, np.nan], np.float32)}, sparsity=0.5)
