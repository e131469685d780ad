"""A recipe from hooks to bundle: killed in the middle it goes on, and the same seed gives the same files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from polling import wait_until
from regatta_fleet.cli import main, model_tables
from regatta_fleet.models.bundle import Bundle
from regatta_fleet.optimize.recipe.compilers import compile_model
from regatta_fleet.optimize.recipe.document import read_recipe
from regatta_fleet.optimize.recipe.models import CompileStep
from regatta_fleet.optimize.recipe.run import RecipeRun, optimize_by_recipe
from regatta_fleet.optimize.report import OptimizeReport
from regatta_protocol.errors import Rejected
from regatta_protocol.manifest import Manifest
from shared_data import REPOSITORY

_HOOKS = f"""
import sys, time
from pathlib import Path

sys.path.insert(0, {str(REPOSITORY / "tests")!r})
import numpy as np
from regatta_fleet.optimize.model_file import model_bytes
from tiny_models import plain_chain

def make_model(seed):
    return 8

def train(model, x, y, seed):
    return model_bytes(plain_chain(model))

def calibration(seed):
    return np.random.RandomState(seed).random_sample((60, 8, 8, 1)), np.arange(60) % 5

def evaluate(answers, labels):
    while not (Path(__file__).parent / "go").exists():
        time.sleep(0.05)
    return 0.5
"""
_RECIPE = """
recipe: 1
seed: 4
hooks: recipe.py
steps:
  - step: take
  - step: quantize
    schemes: [int8, float16]
  - step: compile
    for: edgetpu
    command: [cp, "{model}", "{output}"]
  - step: compile
    for: tidl
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "recipe.py").write_text(_HOOKS)
    (tmp_path / "r.yaml").write_text(_RECIPE)
    return tmp_path / "r.yaml"


def _run(recipe: Path, output: Path, cache: Path) -> tuple[OptimizeReport, list[str]]:
    told: list[str] = []
    run = RecipeRun(output, cache=cache)
    return optimize_by_recipe(read_recipe(recipe), run, lambda message, share: told.append(message)), told


def _outputs(report: OptimizeReport) -> list[dict[str, str]]:
    return [dict(step.outputs) for step in report.history]


def test_a_killed_run_goes_on_and_gives_what_a_whole_one_gives(recipe: Path, tmp_path: Path) -> None:
    output, cache = tmp_path / "bundle", tmp_path / "cache"
    command = [sys.executable, "-m", "regatta_fleet", "model", "optimize", "--recipe", str(recipe)]
    command += ["--output", str(output), "--cache", str(cache)]
    with (tmp_path / "log").open("wb") as log:
        scratch = {**os.environ, "TMPDIR": str(tmp_path)}  # what a kill leaves there, goes with the test
        program = subprocess.Popen(command, stdout=log, stderr=log, env=scratch)
    wait_until(lambda: cache.is_dir() and len(list(cache.glob("[!.]*"))) == 3, 60, "three steps are stored")

    os.kill(program.pid, signal.SIGKILL)
    program.wait(10)
    assert not output.exists()
    (tmp_path / "go").write_text("")
    report, told = _run(recipe, output, cache)
    whole, whole_told = _run(recipe, tmp_path / "other", tmp_path / "empty")

    assert [line for line in told if "cache" in line] == [
        "take: taken from the cache",
        "quantize: taken from the cache",
        "compile: taken from the cache",
    ]
    assert not any("cache" in line for line in whole_told)
    assert _outputs(report) == _outputs(whole)
    assert [step.key for step in report.history] == [step.key for step in whole.history]
    draft = Bundle.open(output).draft
    assert draft.history == report.history
    assert {variant.name for variant in draft.variants} == {"float32", "int8", "float16", "int8-edgetpu"}
    assert next(variant for variant in draft.variants if variant.name == "int8-edgetpu").requires == ("edgetpu",)
    refused = {variant.name: variant.reason for variant in report.variants if not variant.accepted}
    assert "give `command`" in (refused["int8-tidl"] or "")
    assert report.variant("int8").score == 0.5
    facts = {"name": "kws", "version": 1, "created_at": "2026-01-01"}
    manifest = Manifest.model_validate({**draft.model_dump(exclude_none=True), **facts})
    shown = model_tables.lineage(manifest)
    assert [row[1] for row in shown.rows] == ["take", "quantize", "compile", "compile"]
    assert report.history[1].outputs["int8"][:12] in str(shown.rows[1][3])
    page = (output / "report.md").read_text()
    assert "Lineage, by recipe r.yaml, seed 4" in page


def test_a_hook_that_fails_in_the_end_leaves_no_bundle(recipe: Path, tmp_path: Path) -> None:
    hooks = tmp_path / "recipe.py"
    hooks.write_text(hooks.read_text().replace("return 0.5", "return 7"))
    (tmp_path / "go").write_text("")

    with pytest.raises(Rejected, match=r"hook evaluate returned 7\.0 for float32: return a number from 0 to 1"):
        _run(recipe, tmp_path / "bundle", tmp_path / "cache")

    assert not (tmp_path / "bundle").exists()


def test_without_samples_nothing_begins(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text("def make_model(seed): ...\n")

    with pytest.raises(Rejected, match="no samples: give --data"):
        _run(recipe, tmp_path / "bundle", tmp_path / "cache")


def test_a_compiler_that_is_not_here_says_how_to_get_it(tmp_path: Path) -> None:
    step = CompileStep.model_validate({"for": "vela", "command": ["no-such-compiler", "{model}"]})

    with pytest.raises(Rejected, match="no-such-compiler, which compiles for vela, is not installed here"):
        compile_model(step, tmp_path / "m", tmp_path / "o", tmp_path, 5)


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        ("echo bad operator; exit 3", "ended with status 3: bad operator"),
        ("sleep 60", "took over 1 s"),
        ("true", "wrote 0 .tflite files"),
    ],
)
def test_a_compiler_that_fails_is_told(tmp_path: Path, script: str, wanted: str) -> None:
    step = CompileStep.model_validate({"for": "edgetpu", "command": ["sh", "-c", script]})

    with pytest.raises(Rejected, match=wanted):
        compile_model(step, tmp_path / "m", tmp_path / "o", tmp_path, 1.0)


def test_a_recipe_is_checked_from_the_command_line(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["model", "recipe", "--check", str(recipe)])

    assert code == 0
    told = capsys.readouterr().out
    assert "take → quantize → compile → compile" in told
    assert "hooks: make_model, train, calibration, evaluate" in told
