"""Whatever a user's hooks do, the answer is an error that names the hook and the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from regatta_fleet.optimize.recipe.hooks import Hooks
from regatta_protocol.errors import Rejected
from tiny_models import write_samples_file


def _hooks(folder: Path, text: str, time_s: float = 30.0, memory_bytes: int = 1 << 31) -> Hooks:
    file = folder / "recipe.py"
    file.write_text(text)
    return Hooks(file, time_s, memory_bytes)


def test_what_is_defined_is_told(tmp_path: Path) -> None:
    text = "def train(model, x, y, seed, more=1): ...\ndef evaluate(*, answers, labels): ...\ndef helper(): ...\n"

    assert _hooks(tmp_path, text).defined() == ("train", "evaluate")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("def train(model, x, seed): ...", r"recipe\.py: hook train\(model, x, seed\) must take \(model, x, y, seed\)"),
        ("evaluate = 3", r"recipe\.py: evaluate is a int: define it as a function"),
        ("x = 1\ndef make_model(seed)\n", r"recipe\.py, line 2: loading it raised SyntaxError"),
        ("import nothing_like_it", r"recipe\.py, line 1: loading it raised ModuleNotFoundError"),
        ("raise SystemExit(3)", r"recipe\.py, line 1: loading it raised SystemExit: 3"),
        ("import os\nos._exit(7)", r"recipe\.py: loading it ended with status 7"),
    ],
)
def test_a_file_that_will_not_do_is_refused(tmp_path: Path, text: str, wanted: str) -> None:
    with pytest.raises(Rejected, match=wanted):
        _hooks(tmp_path, text).defined()


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("return [][1]", r"recipe\.py, line 2: hook make_model raised IndexError"),
        ("return None", r"recipe\.py: hook make_model returned None: return the model"),
        ("return 3", r"recipe\.py: what hook make_model returned is a int: return a torch"),
        ("return b'none'", r"what hook make_model returned is no TFLite model"),
        ("return '/no/such.tflite'", r"names /no/such\.tflite, which is not there"),
        ("return bytes(1 << 33)", r"recipe\.py: model needs over 2 GiB of memory"),
    ],
)
def test_a_model_that_is_none_is_refused(tmp_path: Path, body: str, wanted: str) -> None:
    hooks = _hooks(tmp_path, f"def make_model(seed):\n    {body}\n")
    samples = write_samples_file(tmp_path / "s.npz", 8, 8, 8, 1)

    with pytest.raises(Rejected, match=wanted):
        hooks.make_model(samples, tmp_path / "m.tflite", 0, "as-is")

    assert not (tmp_path / "m.tflite").exists()


def test_a_hook_that_never_ends_is_ended(tmp_path: Path) -> None:
    hooks = _hooks(tmp_path, "def calibration(seed):\n    while True: pass\n", time_s=3.0)

    with pytest.raises(Rejected, match=r"recipe\.py: .* took over 3 s and was ended"):
        hooks.calibration(tmp_path / "s.npz", 0)


def test_samples_that_will_not_do_are_named(tmp_path: Path) -> None:
    hooks = _hooks(tmp_path, "def calibration(seed):\n    return [[float('nan')]]\n")

    with pytest.raises(Rejected, match=r"what hook calibration returned will not do: .*NaN"):
        hooks.calibration(tmp_path / "s.npz", 0)


def test_a_hook_that_is_missing_is_named_with_its_signature(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"recipe\.py has no hook calibration: define `def calibration\(seed\)`"):
        _hooks(tmp_path, "").calibration(tmp_path / "s.npz", 0)
