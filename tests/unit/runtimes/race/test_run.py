"""The race on real runtimes with a small model, and with candidates that fail in every way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from quick_race import quicken_races
from regatta_protocol.codec import decode, encode
from regatta_protocol.manifest import Policy
from regatta_protocol.measurement import Outcome, RaceReport
from regatta_protocol.values import Accuracy
from regatta_runtimes.choice.report import ranked
from regatta_runtimes.race import run as race_module
from regatta_runtimes.race.run import RaceSpec, RaceVariant, run_race
from regatta_runtimes.worker.session import Array
from tiny_models import dense_model, unary_model

CHILD = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
GOOD = np.eye(4, dtype=np.float32)
BAD = GOOD[::-1].copy()  # answers another class


@pytest.fixture(autouse=True)
def _quick_races(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_races(monkeypatch)


def _bundle(folder: Path) -> RaceSpec:
    """Return a race of a good and a damaged variant of one-hot recognition, with golden and evaluation files."""
    paths = {"good": folder / "good.tflite", "bad": folder / "bad.tflite"}
    for name, weights in (("good", GOOD), ("bad", BAD)):
        paths[name].write_bytes(dense_model(weights, np.zeros(4, dtype=np.float32)))
    y = np.arange(40) % 4
    np.savez(folder / "evaluation.npz", x=np.eye(4, dtype=np.float32)[y], y=y)
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    np.savez(folder / "golden.npz", **{"in.0": x, "out.good.0": x @ GOOD.T, "out.bad.0": x @ BAD.T})
    return RaceSpec(
        model="onehot",
        version=1,
        variants=tuple(
            RaceVariant(name=name, path=str(path), accuracy=Accuracy(correct=40, total=40))
            for name, path in paths.items()
        ),
        golden=str(folder / "golden.npz"),
        evaluation=str(folder / "evaluation.npz"),
        threads=(1, 2),
    )


def test_a_race_places_an_accurate_variant_and_explains_the_rest(tmp_path: Path) -> None:
    """The damaged variant is inaccurate however fast; each candidate has its reason; JSON carries it all."""
    lines: list[str] = []

    report = run_race(_bundle(tmp_path), lines.append)

    placed = report.placed()
    assert placed is not None
    assert placed.variant == "good"
    assert placed.accuracy == Accuracy(correct=40, total=40)
    assert placed.latency is not None
    assert placed.latency.samples >= 100
    assert placed.power.power_mw is not None or placed.power.reason
    assert all(result.reason for result in report.candidates)
    assert Outcome.INACCURATE in {result.outcome for result in report.candidates if result.variant == "bad"}
    assert not any(result.outcome == Outcome.MEASURED for result in report.candidates if result.variant == "bad")
    assert decode(RaceReport, encode(report, 1 << 20), 1 << 20) == report
    assert ranked(report)[0].id == report.placement
    assert lines


def test_without_figures_of_the_fleet_accuracy_is_compared_on_the_board(tmp_path: Path) -> None:
    """The most accurate CPU candidate is the reference; the paired difference takes the damaged variant out."""
    spec = _bundle(tmp_path).model_copy(update={"threads": (1,), "runtimes": ("litert",)})
    bare = tuple(variant.model_copy(update={"accuracy": None}) for variant in spec.variants)

    report = run_race(spec.model_copy(update={"variants": bare}))

    bad = [result for result in report.candidates if result.variant == "bad" and result.outcome == Outcome.INACCURATE]
    placed = report.placed()
    assert placed is not None
    assert placed.variant == "good"
    assert placed.accuracy_drop is not None
    assert (placed.accuracy_drop.drop, placed.accuracy_drop.samples) == (0, 40)
    assert bad
    assert all(one.accuracy_drop is not None and one.accuracy_drop.drop == 1 for one in bad)
    assert all("100.0 points of accuracy against " in (one.reason or "") for one in bad)
    assert report.pareto
    assert report.policy == Policy()


def test_an_earlier_race_that_answers_is_judged_again_and_one_that_does_not_is_raced(tmp_path: Path) -> None:
    """The same winner under a tightened policy costs no race; a damaged report or another objective does."""
    spec = _bundle(tmp_path).model_copy(update={"threads": (1,), "runtimes": ("litert",)})
    first = run_race(spec)
    earlier = tmp_path / "earlier.json"
    earlier.write_bytes(encode(first, 1 << 20))
    strict, other = Policy(max_p99_us=1e6), Policy(objective="latency_p99")
    lines: list[str] = []

    judged = run_race(spec.model_copy(update={"earlier": str(earlier), "policy": strict}), lines.append)
    raced = run_race(spec.model_copy(update={"earlier": str(earlier), "policy": other}))
    earlier.write_text("{")
    said: list[str] = []
    damaged = run_race(spec.model_copy(update={"earlier": str(earlier), "policy": strict}), said.append)

    assert lines == ["the earlier race answers for the changed policy"]
    assert (judged.placement, judged.policy, judged.duration_s) == (first.placement, strict, first.duration_s)
    assert raced.objective == "latency_p99"
    assert damaged.placement is not None
    assert any(line.startswith("final: ") for line in said)


def test_the_program_writes_its_report(tmp_path: Path) -> None:
    """`python -m regatta_runtimes.race.run` prints progress, writes the report and ends with 0."""
    spec = _bundle(tmp_path).model_copy(update={"threads": (1,), "runtimes": ("litert",)})
    (tmp_path / "spec.json").write_bytes(encode(spec))

    done = subprocess.run(
        [sys.executable, "-m", "regatta_runtimes.race.run", "spec.json", "--output", "report.json"],
        cwd=tmp_path,
        env=CHILD,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "litert/good/xnnpack/t1" in done.stdout
    assert json.loads((tmp_path / "report.json").read_text())["placement"].startswith("litert/good/")


def test_a_wrong_specification_ends_with_the_status_of_bad_input(tmp_path: Path) -> None:
    """65, and what was wrong on stderr."""
    (tmp_path / "spec.json").write_text('{"model": "m"}')

    done = subprocess.run(
        [sys.executable, "-m", "regatta_runtimes.race.run", "spec.json", "--output", "report.json"],
        cwd=tmp_path,
        env=CHILD,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 65
    assert "version" in done.stderr


def test_the_orchestrating_process_imports_no_numpy_and_no_runtime() -> None:
    """Nor the vendors' packages: only workers do."""
    code = (
        "import sys, regatta_runtimes.race.run, regatta_runtimes.worker.inspect;"
        "import regatta_runtimes.worker.golden, regatta_runtimes.worker.measure;"
        "sys.exit(any(name in sys.modules for name in ('numpy', 'ai_edge_litert', 'tflite_runtime')))"
    )

    assert subprocess.run([sys.executable, "-c", code], env=CHILD, timeout=60, check=False).returncode == 0


def _faulty(
    tmp_path: Path, *variants: str, policy: Policy | None = None, budget_s: float = 60.0, sysroot: str = "/"
) -> RaceReport:
    for name in variants:  # files that differ, or the crashes of one would be those of all
        (tmp_path / f"{name}.tflite").write_text(name)
    golden = tmp_path / "golden.npz"
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    np.savez(golden, **{"in.0": x, **{f"out.{name}.0": x for name in variants}})
    return run_race(
        RaceSpec(
            model="m",
            version=1,
            variants=tuple(RaceVariant(name=name, path=str(tmp_path / f"{name}.tflite")) for name in variants),
            golden=str(golden),
            policy=policy or Policy(),
            sysroot=sysroot,
            threads=(1,),
            budget_s=budget_s,
            memory_bytes=256 << 20,
            runtimes=(),
            backends={"faulty": "faulty_backend"},
        )
    )


def test_every_failure_is_told_apart_and_the_sound_one_wins(tmp_path: Path) -> None:
    """Crash, abort, exit, memory, refusals, wrong and NaN outputs, a crash in a late round: by name, in one race."""
    expected = {
        "segfault": Outcome.CRASHED,
        "abort": Outcome.CRASHED,
        "exit": Outcome.CRASHED,
        "eat": Outcome.OUT_OF_MEMORY,
        "create": Outcome.CREATE_FAILED,
        "invoke": Outcome.INVOKE_FAILED,
        "wrong": Outcome.WRONG_OUTPUT,
        "nan": Outcome.WRONG_OUTPUT,
        "late": Outcome.CRASHED,
    }

    report = _faulty(tmp_path, "sound", *expected)

    got = {result.variant: result.outcome for result in report.candidates if result.delegate == "none"}
    assert {name: got[name] for name in expected} == expected
    assert report.placement in ("faulty/sound/none/t1", "faulty/sound/xnnpack/t1")
    assert all(result.reason for result in report.candidates)


def test_a_hang_costs_its_limit_and_no_more(tmp_path: Path) -> None:
    """The hanging candidate is killed; the sound one is placed."""
    report = _faulty(tmp_path, "hang", "sound", budget_s=2.0)

    assert report.placement in ("faulty/sound/none/t1", "faulty/sound/xnnpack/t1")
    assert Outcome.HUNG in {result.outcome for result in report.candidates}
    assert report.duration_s < 60  # it would hang for ever


def test_a_race_tells_how_hot_the_board_was(tmp_path: Path) -> None:
    """The temperature beside the rounds; throttling only where something could tell."""
    zone = tmp_path / "root/sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "temp").write_text("51500")

    report = _faulty(tmp_path, "sound", sysroot=str(tmp_path / "root"))

    placed = report.placed()
    assert placed is not None
    assert placed.conditions.temperature_c == 51.5
    assert placed.conditions.throttled is None  # nothing on this board could tell
    assert placed.conditions.rounds >= 3


def test_a_policy_that_nobody_meets_places_nothing(tmp_path: Path) -> None:
    """Placement is None and the reason names the candidates."""
    report = _faulty(tmp_path, "sound", policy=Policy(max_p99_us=0.001))

    assert report.placement is None
    assert "faulty/sound/none/t1" in report.reason
    assert "over the policy's" in report.reason


def test_a_variant_for_an_absent_accelerator_says_what_to_install(tmp_path: Path) -> None:
    """One `unavailable` result, with the reason."""
    path = tmp_path / "m.tflite"
    path.write_bytes(unary_model(custom="edgetpu-custom-op"))
    spec = RaceSpec(
        model="m", version=1, variants=(RaceVariant(name="tpu", path=str(path), requires=("edgetpu",)),), runtimes=()
    )

    report = run_race(spec)

    assert report.placement is None
    assert [(result.id, result.outcome) for result in report.candidates] == [
        ("litert/tpu/edgetpu/t1", Outcome.UNAVAILABLE)
    ]
    assert "libedgetpu1-std" in report.reason


def test_an_operator_that_nothing_supports_is_named(tmp_path: Path) -> None:
    """Every candidate fails to be created, and the reason names the operator."""
    path = tmp_path / "m.tflite"
    path.write_bytes(unary_model(custom="MyOwnOperator"))

    report = run_race(RaceSpec(model="m", version=1, variants=(RaceVariant(name="v", path=str(path)),), threads=(1,)))

    assert report.placement is None
    assert "MyOwnOperator" in report.reason
    assert {result.outcome for result in report.candidates} <= {Outcome.PREPARE_FAILED, Outcome.UNAVAILABLE}


@pytest.mark.parametrize("broken", ["golden", "evaluation"])
def test_a_bundle_with_wrong_shapes_is_at_fault_not_the_candidates(tmp_path: Path, broken: str) -> None:
    """Nothing is placed; the reason names the file and both shapes."""
    spec = _bundle(tmp_path)
    narrow = np.ones((3, 5), dtype=np.float32)
    arrays: dict[str, Array] = {"in.0": narrow, "x": narrow, "y": np.zeros(3, dtype=np.int64)}
    np.savez(tmp_path / f"{broken}.npz", **arrays)

    report = run_race(spec.model_copy(update={"threads": (1,), "runtimes": ("litert",)}))

    assert report.placement is None
    assert f"{broken}.npz" in report.reason
    assert "5" in report.reason
    assert Outcome.MEASURED not in {result.outcome for result in report.candidates}


def test_a_runtime_that_is_missing_is_unavailable(tmp_path: Path) -> None:
    """With the others the race goes on."""
    spec = _bundle(tmp_path).model_copy(
        update={"threads": (1,), "runtimes": ("litert", "gone"), "backends": {"gone": "no_such_backend"}}
    )

    report = run_race(spec)

    assert report.placement is not None
    gone = [result for result in report.candidates if result.runtime == "gone"]
    assert {result.outcome for result in gone} == {Outcome.UNAVAILABLE}
    assert "no_such_backend" in (gone[0].reason or "")


def test_the_probe_model_is_the_one_that_the_recipe_builds() -> None:
    """The shipped probe.tflite is float32 [1, 4] -> ABS, nothing else."""
    shipped = Path(race_module.__file__).with_name("probe.tflite").read_bytes()

    assert shipped == unary_model(101)


def _descendants(pid: int) -> set[int]:
    """Return the ids of every process below this one."""
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found |= {child} | _descendants(child)
    return found


def test_nothing_outlives_a_race_that_is_killed(tmp_path: Path) -> None:
    """kill -9 of the race takes its forkserver and a hanging worker with it."""
    (tmp_path / "m.tflite").write_bytes(b"whatever")
    spec = RaceSpec(
        model="m",
        version=1,
        variants=(RaceVariant(name="hang", path=str(tmp_path / "m.tflite")),),
        budget_s=120,
        runtimes=(),
        backends={"faulty": "faulty_backend"},
    )
    (tmp_path / "spec.json").write_bytes(encode(spec))
    race = subprocess.Popen(
        [sys.executable, "-m", "regatta_runtimes.race.run", "spec.json", "--output", "report.json"],
        cwd=tmp_path,
        env=CHILD,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    below: set[int] = set()
    while len(below) < 2 and time.monotonic() < deadline:
        below = _descendants(race.pid)
        threading.Event().wait(0.01)

    race.kill()
    race.wait(10)

    while any(_lives(pid) for pid in below) and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert len(below) == 2
    assert not any(_lives(pid) for pid in below)


def _lives(pid: int) -> bool:
    """Return whether the process runs; a zombie that init has not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
