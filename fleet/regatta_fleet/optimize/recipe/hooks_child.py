"""The child process of `hooks.py`: loads a user's file, and calls what it defines.

Whatever user's code raises becomes a refusal that names the hook, the error and the line.
"""

from __future__ import annotations

import functools
import inspect
import io
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

from regatta_fleet.optimize.process import serve
from regatta_fleet.optimize.recipe.hooks import SIGNATURES, HookAnswer, HookName, HookSpec
from regatta_fleet.optimize.samples import Samples, read_samples, write_samples
from regatta_fleet.optimize.sources.made import write_made
from regatta_fleet.optimize.usercode import guarded, load_file, seed_everything
from regatta_protocol.errors import Rejected

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Do what `hooks` asks; 0 when an answer was written."""
    return serve(arguments, HookSpec, _run, lambda spec: f"{Path(spec.file).name}: {spec.work}")


def _run(spec: HookSpec) -> HookAnswer:
    file = Path(spec.file)
    module = load_file(file)
    defined = tuple(hook for hook in SIGNATURES if _defines(module, hook, file))
    if spec.work == "check":
        return HookAnswer(defined=defined)
    seed_everything(spec.seed)
    if spec.work == "calibration":
        return _calibration(module, spec)
    if spec.work == "evaluate":
        return _evaluate(module, spec)
    return _model(module, spec, "train" in defined)


def _defines(module: ModuleType, hook: HookName, file: Path) -> bool:
    function = getattr(module, hook, None)
    if function is None:
        return False
    if not callable(function):
        raise Rejected(f"{file.name}: {hook} is a {type(function).__name__}: define it as a function")
    wanted = SIGNATURES[hook]
    try:
        inspect.signature(function).bind(**dict.fromkeys(wanted))
    except (TypeError, ValueError) as err:
        found = str(inspect.signature(function))
        raise Rejected(
            f"{file.name}: hook {hook}{found} must take ({', '.join(wanted)}), by these names: {err}"
        ) from err
    return True


def _calibration(module: ModuleType, spec: HookSpec) -> HookAnswer:
    file = Path(spec.file)
    given = guarded(file.name, "hook calibration", lambda: module.calibration(seed=spec.seed))
    x, y = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    output = Path(str(spec.output))
    try:
        samples = Samples(np.asarray(x, np.float32), None if y is None else np.asarray(y, np.int64))
        write_samples(output, samples)
        read_samples(output)  # checks shapes and values
    except (TypeError, ValueError) as err:
        raise Rejected(f"{file.name}: hook calibration must return arrays x, or (x, y): {err}") from err
    except Rejected as err:
        raise Rejected(f"{file.name}: what hook calibration returned will not do: {err}") from err
    return HookAnswer()


def _model(module: ModuleType, spec: HookSpec, trained: bool) -> HookAnswer:
    file = Path(spec.file)
    samples = read_samples(Path(str(spec.samples)))
    model: object = guarded(file.name, "hook make_model", lambda: module.make_model(seed=spec.seed))
    words = [f"made by {file.name}"]
    if trained:
        before = model
        model = guarded(
            file.name, "hook train", lambda: module.train(model=before, x=samples.x, y=samples.y, seed=spec.seed)
        )
        words.append(f"trained on {len(samples)} samples, seed {spec.seed}")
    hook = "train" if trained else "make_model"
    if model is None:
        raise Rejected(f"{file.name}: hook {hook} returned None: return the model")
    write_made(model, Path(str(spec.output)), samples.x[:1], spec.layout, f"{file.name}: what hook {hook} returned")
    return HookAnswer(words=tuple(words))


def _evaluate(module: ModuleType, spec: HookSpec) -> HookAnswer:
    file = Path(spec.file)
    labels = read_samples(Path(str(spec.samples))).y
    scores = {}
    for name, path in spec.answers.items():
        answers = np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False)["out"]
        found = guarded(file.name, "hook evaluate", functools.partial(module.evaluate, answers=answers, labels=labels))
        try:
            score = float(found)
        except (TypeError, ValueError) as err:
            raise Rejected(
                f"{file.name}: hook evaluate returned a {type(found).__name__} for {name}: return a number"
            ) from err
        if not 0 <= score <= 1:
            raise Rejected(f"{file.name}: hook evaluate returned {score} for {name}: return a number from 0 to 1")
        scores[name] = score
    return HookAnswer(scores=scores)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
