"""A sample of the crash lab, and the proof that it finds what it is for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from crash import lab, update

LAST_LINE = re.compile(r"(\d+) points hit, (\d+) violations")


@pytest.fixture(autouse=True)
def _traceable() -> None:
    reason = lab.obstacle()
    if reason is not None:
        pytest.skip(reason)


def crashlab(*arguments: str, bug: str = "") -> tuple[int, int, int, str]:
    """Return the status, the points, the violations and the whole output of a run."""
    command = [sys.executable, str(Path(lab.__file__)), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=170, env={**os.environ, lab.BUG_VARIABLE: bug}
    )
    last = LAST_LINE.fullmatch(done.stdout.splitlines()[-1] if done.stdout else "")
    assert last is not None, done.stdout[-2000:] + done.stderr[-2000:]
    return done.returncode, int(last[1]), int(last[2]), done.stdout


def test_a_sample_of_kills_breaks_no_promise() -> None:
    """Every kill happened where it was meant to, and what must hold after it does."""
    assert crashlab("--points", "60", "--seed", "3")[:3] == (0, 60, 0)


@pytest.mark.parametrize("bug", update.BUGS)
def test_a_seeded_bug_is_found(bug: str) -> None:
    """Files written in place of the good copy, and downloads among the verified files."""
    status, points, violations, output = crashlab("--points", "20", bug=bug)

    assert (status, points) == (1, 20)
    assert violations
    assert "again: ./run crashlab --seed 1 --point " in output


def test_a_violation_is_hit_again_by_its_number() -> None:
    """The seed and the number are enough."""
    *_counts, output = crashlab("--points", "12", bug="in-place")
    first = output.splitlines()[0]
    found = re.fullmatch(r"(?P<what>.*); again: \./run crashlab --seed (?P<seed>\d+) --point (?P<point>\d+)", first)
    assert found is not None, output

    again = crashlab("--seed", found["seed"], "--point", found["point"], bug="in-place")
    assert again[:3] == (1, 1, 1)
    assert again[3].startswith(found["what"])
