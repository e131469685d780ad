"""A sample of the crash lab, and the proof that each of its layers finds what it is for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from crash import check, lab, shim

pytestmark = pytest.mark.timeout(600)  # it takes a minute on two cores that have nothing else to do

LAST_LINE = re.compile(r"(\d+) points hit, (\d+) violations")


@pytest.fixture(autouse=True)
def _able() -> None:
    reason = shim.build() or check.obstacle()
    if reason is not None:
        pytest.skip(reason)


def crashlab(*arguments: str, bug: str = "") -> tuple[int, str]:
    """Return the status and the output of a run."""
    done = subprocess.run(
        [sys.executable, str(Path(lab.__file__)), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=580,
        env={**os.environ, lab.BUG_VARIABLE: bug},
    )
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]
    return done.returncode, done.stdout


def counts(output: str) -> tuple[int, int]:
    """Return the points and the violations of the last line."""
    last = LAST_LINE.fullmatch(output.splitlines()[-1])
    assert last is not None, output[-2000:]
    return int(last[1]), int(last[2])


def test_a_sample_of_every_layer_and_story_breaks_no_promise() -> None:
    """Kills, failing calls and power cuts: what must hold after each does; and strace sees what the lab sees."""
    status, output = crashlab("--points", "300", "--seed", "3")

    assert (status, *counts(output)) == (0, 300, 0), output[-3000:]


@pytest.mark.parametrize(
    ("bug", "layer", "points"),
    [
        ("in-place", "kill", 40),
        ("blob-in-place", "kill", 40),
        ("blob-in-place", "random", 100),  # moments by the clock: about 5 of them hit
        ("no-sync", "cut", 40),
        ("no-folder-sync", "cut", 40),
        ("deaf", "error", 240),
        ("impatient", "error", 40),
    ],
)
def test_a_planted_bug_is_found(bug: str, layer: str, points: int) -> None:
    """Files in place by kills, what is not synced by power cuts, swallowed errors and missing pauses by errors."""
    status, output = crashlab("--points", str(points), "--layer", layer, "--scenario", "update", bug=bug)

    assert status == 1
    assert counts(output)[1] > 0
    assert f"again: ./run crashlab --layer {layer} --scenario update --seed 1 --point " in output


@pytest.mark.parametrize("layer", ["kill", "cut"])
def test_a_violation_is_hit_again_by_its_number(layer: str) -> None:
    """The layer, the story, the seed and the number are enough."""
    _status, output = crashlab("--points", "60", "--layer", layer, "--scenario", "update", "--json", bug="in-place")
    first = json.loads(output)["violations"][0]

    again = crashlab(*first["again"].split()[2:], bug="in-place")
    assert (again[0], *counts(again[1])) == (1, 1, 1)
    assert first["violation"] in again[1]
