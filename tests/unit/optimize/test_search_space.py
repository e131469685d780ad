"""Search spaces, the layers that they come to, and the strategies that need no framework."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regatta_fleet.optimize.nas.contest import compare_seeds
from regatta_fleet.optimize.nas.evolution import RandomSearch, RegularizedEvolution, Sampler
from regatta_fleet.optimize.nas.layers import build_layers, count, every_layer
from regatta_fleet.optimize.nas.objective import Found, front_of, reward
from regatta_fleet.optimize.nas.space import SMALL, Block, Genes, SearchSpace, read_space
from regatta_protocol.errors import Rejected

_SHAPE = (8, 8, 1)


@given(st.integers(0, 2**32))
def test_a_mutation_changes_one_decision(seed: int) -> None:
    random = Random(seed)
    genes = SMALL.draw(random)

    changed = SMALL.mutate(genes, random)

    assert sum(one != other for one, other in zip(genes, changed, strict=True)) == 1
    assert all(0 <= gene < decision.options for gene, decision in zip(changed, SMALL.decisions(), strict=True))


@given(st.integers(0, 2**32))
def test_every_architectures_layers_are_in_the_table(seed: int) -> None:
    """What is timed beforehand covers whatever a strategy may propose; each layer takes what the one before gives."""
    layers = build_layers(SMALL, SMALL.draw(Random(seed)), _SHAPE, 10)

    assert {layer.key for layer in layers} <= every_layer(SMALL, _SHAPE, 10).keys()
    assert [layer.after for layer in layers[:-1]] == [layer.before for layer in layers[1:]]
    assert layers[0].before == _SHAPE and layers[-1].after == (1, 1, 10)


def test_work_is_counted() -> None:
    space = SearchSpace(
        space=1, blocks=(Block(width=(4,), kernel=(3,)), Block(op=("separable",), width=(6,), stride=(2,)))
    )

    macs, weights = count(build_layers(space, (), (8, 8, 1), 3))

    assert macs == 64 * 4 * 9 + 16 * 4 * 9 + 16 * 6 * 4 + 6 * 3
    assert weights == 4 * 10 + 4 * 10 + 6 * 5 + 3 * 7


def test_an_inverted_block_has_its_shortcut_where_shapes_allow() -> None:
    space = SearchSpace(space=1, blocks=(Block(op=("inverted",), width=(4,), depth=(2,), expansion=(3,)),))

    kinds = [(layer.kind, layer.skip) for layer in build_layers(space, (), (8, 8, 1), 3)]

    assert [kind for kind, _ in kinds] == [
        "conv",
        "depthwise",
        "conv",
        "conv",
        "depthwise",
        "conv",
        "add",
        "average",
        "dense",
    ]
    assert kinds[6] == ("add", 2)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("space: 1\nblocks:\n  - width: 8\n", r"s\.yaml, line 2: every choice has one option"),
        ("space: 1\nblocks:\n  - {width: [8, 16], op: convv}\n", r"line 3: blocks\[0\]\.op: 'convv'"),
        ("space: 1\nblocks:\n  - {width: [8, 16], kernel: 4}\n", r"line 3: blocks\[0\]\.kernel: 4"),
        ("space: 1\nblocks:\n  - {width: [8, 16], size: 4}\n", r"unknown key"),
    ],
)
def test_a_space_that_is_wrong_is_refused_by_line(tmp_path: Path, text: str, wanted: str) -> None:
    (tmp_path / "s.yaml").write_text(text)

    with pytest.raises(Rejected, match=wanted):
        read_space(tmp_path / "s.yaml")


def _worth(genes: Genes) -> float:
    """Return more the smaller the genes: something to find."""
    return -float(sum(genes))


def _best(sampler: Sampler, candidates: int) -> float:
    best = -1e9
    for _ in range(candidates):
        genes = sampler.propose()
        sampler.tell(genes, _worth(genes))
        best = max(best, _worth(genes))
    return best


def test_evolution_learns_and_random_search_does_not_repeat_itself() -> None:
    """Over ten seeds, on a space where every decision counts by itself, evolution is ahead."""
    evolved = [_best(RegularizedEvolution(SMALL, seed), 60) for seed in range(10)]
    drawn = [_best(RandomSearch(SMALL, seed), 60) for seed in range(10)]

    contest = compare_seeds(evolved, drawn)

    assert contest.mean_gain > 0 and contest.p_value < 0.05
    assert "beats random search" in contest.verdict
    search = RandomSearch(SMALL, 1)
    proposed = [search.propose() for _ in range(200)]
    assert len(set(proposed)) == 200
    again = RandomSearch(SMALL, 1)
    assert [again.propose() for _ in range(200)] == proposed


def test_a_space_that_is_used_up_is_proposed_again() -> None:
    space = SearchSpace(space=1, blocks=(Block(width=(4, 8)),))
    sampler = RegularizedEvolution(space, 0, population=2, sample=2)

    assert _best(sampler, 10) == 0.0


@pytest.mark.parametrize(
    ("rewards", "control", "words"),
    [
        ([0.9, 0.9, 0.9, 0.9, 0.9], [0.8, 0.81, 0.82, 0.83, 0.84], "which may be chance (better in 5 of 5"),
        ([0.8], [0.9], "does not beat random search (better in 0 of 1 seeds, worse in 1"),
        ([0.8, 0.9], [0.8, 0.9], "does not beat"),
    ],
)
def test_a_contest_says_how_sure_it_is(rewards: list[float], control: list[float], words: str) -> None:
    assert words in compare_seeds(rewards, control).verdict


def test_five_seeds_reach_p_of_one_sixteenth_at_best() -> None:
    assert compare_seeds([1.0] * 5, [0.0] * 5).p_value == 0.0625


def test_the_reward_marks_down_what_is_over_the_target() -> None:
    assert reward(0.9, 10, 20) == 0.9
    assert reward(0.9, 40, 20) == pytest.approx(0.9 * 2**-0.07)


def test_the_front_is_what_no_other_beats() -> None:
    found = [
        Found(genes=(), words="", accuracy=accuracy, latency_us=us, reward=0, macs=0, weights=0, train_steps=0)
        for accuracy, us in ((0.9, 5), (0.8, 6), (0.8, 2), (0.95, 9), (0.9, 5))
    ]

    assert front_of(found) == (2, 0, 3)
