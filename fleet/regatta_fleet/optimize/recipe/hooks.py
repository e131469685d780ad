"""A user's `recipe.py`: what it may define, and the typed front of the child process that alone ever loads it.

    make_model(seed) -> model                a network, whatever `train` takes
    train(model, x, y, seed) -> model        trained; y is None where samples have no labels
    calibration(seed) -> x or (x, y)         samples, in place of --data
    evaluate(answers, labels) -> number      higher is better, in [0, 1]; in place of top-1 accuracy

What make_model (or train, where there is one) returns in the end is a PyTorch module, the bytes of a .tflite, or a path
of a model file. A hook that raises, crashes, hangs or takes memory without end is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from regatta_fleet.optimize.process import ChildAnswer, run_module
from regatta_protocol.errors import Rejected
from regatta_protocol.wire import Wire

__all__ = ["SIGNATURES", "HookAnswer", "HookName", "HookSpec", "Hooks"]

HookName = Literal["make_model", "train", "calibration", "evaluate"]
SIGNATURES: dict[HookName, tuple[str, ...]] = {
    "make_model": ("seed",),
    "train": ("model", "x", "y", "seed"),
    "calibration": ("seed",),
    "evaluate": ("answers", "labels"),
}


class HookSpec(Wire):
    """One use of the hooks, as the child reads it."""

    file: str
    work: Literal["check", "model", "calibration", "evaluate"]
    seed: int = 0
    samples: str | None = None  # .npz with x and optionally y
    output: str | None = None
    layout: str = "as-is"
    answers: dict[str, str] = Field(default_factory=dict)  # .npz with `out` by the variant's name


class HookAnswer(ChildAnswer):
    """What the hooks gave."""

    defined: tuple[HookName, ...] = ()
    scores: dict[str, float] = Field(default_factory=dict)
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hooks:
    """A user's file of hooks, with what one use of it may take."""

    file: Path
    time_s: float
    memory_bytes: int

    def defined(self) -> tuple[HookName, ...]:
        """Return which hooks the file defines, their signatures checked.

        Raises:
            Rejected: when it cannot be loaded, or a hook takes other arguments; the text names it.
        """
        return self._use(HookSpec(file=str(self.file), work="check"), "loading it").defined

    def make_model(self, samples: Path, output: Path, seed: int, layout: str) -> tuple[str, ...]:
        """Have the model made and trained, and written to `output` as a .tflite; returns what was done, in words."""
        self._require("make_model")
        spec = HookSpec(
            file=str(self.file), work="model", seed=seed, samples=str(samples), output=str(output), layout=layout
        )
        return self._use(spec, "hooks make_model and train").words

    def calibration(self, output: Path, seed: int) -> None:
        """Have the samples written to `output`, an .npz with x and optionally y."""
        self._require("calibration")
        self._use(HookSpec(file=str(self.file), work="calibration", seed=seed, output=str(output)), "hook calibration")

    def evaluate(self, samples: Path, answers: Mapping[str, Path]) -> dict[str, float]:
        """Return the score of each variant's answers (.npz with `out`) on the samples."""
        paths = {name: str(path) for name, path in answers.items()}
        spec = HookSpec(file=str(self.file), work="evaluate", samples=str(samples), answers=paths)
        return self._use(spec, "hook evaluate").scores

    def _require(self, hook: HookName) -> None:
        if hook not in self.defined():
            arguments = ", ".join(SIGNATURES[hook])
            raise Rejected(f"{self.file.name} has no hook {hook}: define `def {hook}({arguments})`")

    def _use(self, spec: HookSpec, what: str) -> HookAnswer:
        return run_module(
            "regatta_fleet.optimize.recipe.hooks_child",
            spec,
            HookAnswer,
            what=f"{self.file.name}: {what}",
            timeout_s=self.time_s,
            memory_bytes=self.memory_bytes,
        )
