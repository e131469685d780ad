"""The child process of `steps.py`: `python -m regatta_fleet.optimize.child SPEC ANSWER PARENT MEMORY`.

It runs one step and writes one `StepResult` to ANSWER. What the libraries print goes to the parent's log. Its limits
are those of `process`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from regatta_fleet.optimize.cost import count_macs, count_weights
from regatta_fleet.optimize.model_file import ModelTree, check_float, model_bytes, read_model, write_model
from regatta_fleet.optimize.process import serve
from regatta_fleet.optimize.quantize.layers import Layer, stem_layers
from regatta_fleet.optimize.quantize.schemes import SCHEMES
from regatta_fleet.optimize.report import LayerReport
from regatta_fleet.optimize.samples import Samples, check_shape, read_samples
from regatta_fleet.optimize.steps import (
    Answers,
    Attempt,
    Check,
    Made,
    ModelCost,
    Prune,
    Quantize,
    Search,
    Spec,
    Step,
    StepResult,
)
from regatta_protocol.durable import write_durably
from regatta_protocol.errors import Misuse, Rejected

__all__ = ["main"]

_MAX_NAME = 128
_MAX_TUNING_SAMPLES = 512  # bounds the time; ranges and refits settle long before


def main(arguments: list[str]) -> int:
    """Run the step; 0 when an answer was written."""
    return serve(
        arguments, Spec, lambda spec: _run(spec.step), lambda spec: f"step {spec.step.kind} of {spec.step.model}"
    )


def _run(step: Step) -> StepResult:
    if isinstance(step, Answers):
        return _answers(step)
    model = read_model(Path(step.model))
    if isinstance(step, Check):
        return _check(step, model)
    samples = read_samples(Path(step.samples))
    samples = samples.chosen(np.arange(len(samples)) < _MAX_TUNING_SAMPLES)
    if isinstance(step, Prune):
        return _prune(step, model, samples.x)
    if importlib.util.find_spec("ai_edge_quantizer") is None:
        raise Misuse("quantization needs ai-edge-quantizer: pip install 'regatta-edge[optimize]'")
    if isinstance(step, Search):
        return _search(step, model, samples)
    return _quantize(step, model, samples)


def _quantize(step: Quantize, model: ModelTree, samples: Samples) -> StepResult:
    from regatta_fleet.optimize.quantize.engine import Source

    source = Source(model)
    made, ranged = [], False
    for scheme, output in step.outputs.items():
        facts = SCHEMES[scheme]
        differs = {"int8-unfolded": source.folded, "int8-float-stem": stem_layers(model)}.get(scheme, (scheme,))
        if "int8" in step.outputs and not differs:
            continue  # the same file as int8
        try:
            if facts.calibrated and not ranged:
                source.calibrate(samples.x)
                ranged = True
            quantized = source.quantize_by(scheme)
        except Rejected as err:
            made.append(Made(scheme=scheme, notes=(facts.words,), reason=str(err)))
            continue
        write_durably(Path(output), quantized.content, mode=0o644)
        notes = [facts.words + (f" ({len(samples)} samples)" if facts.calibrated else "")]
        notes += quantized.rewritten
        floats = sum(layer.precision == "float32" for layer in quantized.layers)
        if floats:
            notes.append(f"{floats} of {len(quantized.layers)} layers left in float32")
        if source.dead_channels:
            notes.append(f"{source.dead_channels} channels of zero weights given a range")
        made.append(Made(scheme=scheme, notes=tuple(notes), layers=tuple(map(_layer_report, quantized.layers))))
    return StepResult(made=tuple(made))


def _search(step: Search, model: ModelTree, samples: Samples) -> StepResult:
    from regatta_fleet.optimize.quantize.engine import Source
    from regatta_fleet.optimize.quantize.search import search_precision

    source = Source(model)
    source.calibrate(samples.x)
    mix = search_precision(source, samples, step.max_drop)
    if all(layer.precision == "int8" for layer in mix.quantized.layers):
        raise Rejected("no layer can be int4 within the budget, and none need be float32: it would be int8 itself")
    write_durably(Path(step.output), mix.quantized.content, mode=0o644)
    counts = Counter(layer.precision for layer in mix.quantized.layers)
    layers = tuple(
        _layer_report(layer).model_copy(update={"int8_snr_db": noise.int8_db, "int4_snr_db": noise.int4_db})
        for layer, noise in zip(mix.quantized.layers, mix.noises, strict=True)
    )
    notes = (
        f"precision by layer: {', '.join(f'{count} {precision}' for precision, count in sorted(counts.items()))}",
        f"the fewest bytes of {mix.tried} plans within the budget",
    )
    return StepResult(made=(Made(scheme="mixed", notes=notes, layers=layers),))


def _layer_report(layer: Layer) -> LayerReport:
    name = layer.name.split(";")[0][:_MAX_NAME]  # converters join the names of all that they fused
    return LayerReport(name=name, kind=layer.kind, weights=layer.weights, precision=layer.precision)


def _prune(step: Prune, model: ModelTree, samples: npt.NDArray[np.float32]) -> StepResult:
    from regatta_fleet.optimize.prune.contest import Contest

    contest = Contest(model, samples, read_samples(Path(step.held_back)), step.max_drop)
    attempts = []
    for share in step.shares:
        pruned, notes = contest.winner(share)
        content = model_bytes(pruned.model)
        cost = _cost(pruned.model)
        attempts.append(Attempt(share=share, notes=notes, size_bytes=len(content), cost=cost, reason=pruned.reason))
        if pruned.reason is None:
            write_durably(Path(step.output), content, mode=0o644)
            break
    return StepResult(attempts=tuple(attempts))


def _check(step: Check, model: ModelTree) -> StepResult:
    name = Path(step.model).name
    check_float(model, name)
    graph = model.subgraphs[0]
    if step.samples is not None:
        check_shape(read_samples(Path(step.samples)), graph.tensors[graph.inputs[0]].shape, Path(step.samples).name)
    write_model(model, Path(step.output))
    return StepResult(cost=_cost(model))


def _answers(step: Answers) -> StepResult:
    from regatta_fleet.optimize.answers import real_answers

    found = real_answers(Path(step.model), read_samples(Path(step.samples)).x)
    with Path(step.output).open("wb") as file:
        np.savez(file, out=found)
    return StepResult()


def _cost(model: ModelTree) -> ModelCost:
    return ModelCost(macs=count_macs(model), weights=count_weights(model))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
