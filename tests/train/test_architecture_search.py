"""Architecture search with PyTorch: what is trained is what is written, and each strategy finds something."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra [train] is not installed: PyTorch is missing")

from regatta_fleet.cli import main  # noqa: E402
from regatta_fleet.examples.digits import data  # noqa: E402
from regatta_fleet.models.bundle import Bundle  # noqa: E402
from regatta_fleet.optimize.evaluate import answers_of  # noqa: E402
from regatta_fleet.optimize.model_file import write_model  # noqa: E402
from regatta_fleet.optimize.nas.darts import Supernet, _second_order, _slopes, darts  # noqa: E402
from regatta_fleet.optimize.nas.latency import LatencyTable  # noqa: E402
from regatta_fleet.optimize.nas.layers import build_layers, every_layer  # noqa: E402
from regatta_fleet.optimize.nas.network import Network, folded_weights  # noqa: E402
from regatta_fleet.optimize.nas.reinforce import Reinforce  # noqa: E402
from regatta_fleet.optimize.nas.run import plan_search, run_search  # noqa: E402
from regatta_fleet.optimize.nas.space import SMALL, Block, SearchSpace  # noqa: E402
from regatta_fleet.optimize.nas.tflite import network_model  # noqa: E402
from regatta_fleet.optimize.nas.training import Data, divide  # noqa: E402
from regatta_fleet.optimize.recipe.models import SearchStep  # noqa: E402
from regatta_fleet.optimize.samples import Samples, write_samples  # noqa: E402
from regatta_protocol.errors import Rejected  # noqa: E402

_TINY = SearchSpace(
    space=1,
    blocks=(
        Block(op=("conv", "separable"), width=(4, 8), stride=(2,)),
        Block(op=("conv", "inverted"), kernel=(3, 5), width=(8, 16), depth=(1, 2), stride=(2,)),
    ),
)
_SHAPE = (8, 8, 1)


def _table(space: SearchSpace) -> LatencyTable:
    """Return a table by work, so that nothing depends on this machine."""
    layers = every_layer(space, _SHAPE, 10)
    times = {key: 0.1 + layer.macs / 20_000 for key, layer in layers.items()}
    return LatencyTable(device="a rule", setting="none", call_us=1.0, layers_us=times)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    split = data.load()
    path = tmp_path_factory.mktemp("digits") / "train.npz"
    write_samples(path, Samples(split.train_x[:600], split.train_y[:600]))
    return path


@pytest.mark.parametrize("seed", range(4))
def test_the_written_model_answers_as_the_trained_one(tmp_path: Path, seed: int) -> None:
    """Strides, odd sizes, shortcuts and folded normalization come out right."""
    layers = build_layers(SMALL, SMALL.draw(Random(seed)), (9, 9, 2), 10)
    torch.manual_seed(seed)
    network = Network(layers)
    x = torch.randn(64, 2, 9, 9)
    network.train()
    with torch.no_grad():
        network(x)  # so that the running means are not those of the beginning
    network.eval()
    write_model(network_model(layers, folded_weights(network)), tmp_path / "m.tflite")
    write_samples(tmp_path / "s.npz", Samples(x[:8].permute(0, 2, 3, 1).numpy()))

    answers = answers_of(tmp_path / "m.tflite", tmp_path / "s.npz")

    with torch.no_grad():
        wanted = network(x[:8]).softmax(1).numpy()
    assert answers == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("strategy", ["random", "evolution", "reinforce", "darts", "darts2"])
def test_each_strategy_keeps_its_budget_and_is_the_same_again(samples: Path, tmp_path: Path, strategy: str) -> None:
    step = SearchStep.model_validate({"strategy": strategy, "budget": 160, "candidate_steps": 40, "final_steps": 60})
    plan = plan_search(step, _TINY, samples, _table(_TINY))

    first, second = (run_search(plan, 3, tmp_path / f"{number}.tflite") for number in (1, 2))

    assert first.steps <= 160 and first.best in first.tried
    assert first.best.accuracy > 0.2
    assert set(first.front) <= set(range(len(first.tried)))
    timed = {"duration_s"}
    assert first.model_dump(exclude=timed) == second.model_dump(exclude=timed)
    assert (tmp_path / "1.tflite").read_bytes() == (tmp_path / "2.tflite").read_bytes()


def test_the_controller_learns_what_is_worth_more() -> None:
    strategy = Reinforce(_TINY, 0)
    wanted = tuple(decision.options - 1 for decision in _TINY.decisions())
    before = strategy.probability(wanted)

    for _ in range(150):
        genes = strategy.propose()
        strategy.tell(genes, sum(one == other for one, other in zip(genes, wanted, strict=True)) / len(wanted))

    assert strategy.probability(wanted) > 5 * before


@pytest.fixture
def double() -> Iterator[None]:
    """Compute in float64, so that differences of a loss are the slopes and not rounding."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
def test_second_order_is_the_slope_one_step_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite differences of the unrolled loss, in float64, agree with eq. 7 and 8 for every share."""
    monkeypatch.setattr("regatta_fleet.optimize.nas.darts.REACH", 1e-5)  # kinks of relu count less than at 0.01
    torch.manual_seed(1)
    net = Supernet(_TINY, _SHAPE, 10, _table(_TINY))
    weights, shares = net.weights(), net.shares()
    batches = [(torch.randn(32, 1, 8, 8), torch.randint(0, 10, (32,))) for _ in range(2)]
    rate, target_us, delta = 0.05, 3.0, 1e-5

    def ahead() -> float:
        kept = [weight.detach().clone() for weight in weights]
        slopes = _slopes(net.loss(*batches[0]), weights)
        with torch.no_grad():
            for weight, slope in zip(weights, slopes, strict=True):
                weight.sub_(rate * slope)
            loss = float(net.outer_loss(*batches[1], target_us))
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)
        return loss

    found = _second_order(net, weights, batches[0], batches[1], target_us, rate)

    for share, slope in zip(shares, found, strict=True):
        for at in range(len(share)):
            share.data[at] += delta
            above = ahead()
            share.data[at] -= 2 * delta
            below = ahead()
            share.data[at] += delta
            assert float(slope[at]) == pytest.approx((above - below) / (2 * delta), rel=0.05, abs=2e-5)


def test_what_the_shares_expect_is_the_latency_of_what_they_decided() -> None:
    table = _table(_TINY)
    net = Supernet(_TINY, _SHAPE, 10, table)
    with torch.no_grad():
        for share in net.shares():
            share[0] = 50.0
    genes = net.best()

    assert net.expected_us().item() == pytest.approx(
        table.estimate_us(build_layers(_TINY, genes, _SHAPE, 10)), rel=1e-4
    )


def test_darts_refuses_a_space_whose_strides_differ() -> None:
    space = SearchSpace(space=1, blocks=(Block(width=(4, 8), stride=(1, 2)),))
    nothing = Data(torch.zeros(64, 1, 8, 8), torch.zeros(64, dtype=torch.long))

    with pytest.raises(Rejected, match="block 1 has strides"):
        darts(space, (nothing, nothing), 10, _SHAPE, _table(space), 1.0, steps=2, second_order=False, seed=0)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (Samples(np.zeros((80, 8, 8, 1), np.float32)), "labelled samples"),
        (Samples(np.zeros((80, 8), np.float32), np.zeros(80, np.int64)), r"samples \[n, h, w, c\]"),
        (Samples(np.zeros((8, 8, 8, 1), np.float32), np.zeros(8, np.int64)), "at least 40"),
    ],
)
def test_samples_that_cannot_be_searched_on_are_refused(given: Samples, wanted: str) -> None:
    with pytest.raises(Rejected, match=wanted):
        divide(given)


def test_a_search_ends_in_a_bundle(samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "space.yaml").write_text("space: 1\nblocks:\n  - {width: [4, 8], stride: 2}\n")
    arguments = ["--budget", "60", "--candidate-steps", "20", "--final-steps", "150", "--seeds", "2"]
    arguments += ["--space", str(tmp_path / "space.yaml"), "--data", str(samples), "--output", str(tmp_path / "found")]

    code = main(["model", "search", *arguments, "--accuracy-drop", "10%"])

    assert code == 0
    draft = Bundle.open(tmp_path / "found").draft
    assert [step.step for step in draft.history] == ["search", "quantize"]
    assert [variant.name for variant in draft.variants] == ["float32", "int8"]
    page = (tmp_path / "found/search.md").read_text()
    assert "Pareto front" in page and "random search at the same budget:" in page
    assert (tmp_path / "found/search.json").is_file()
