"""The child process of `train.steps`: `python -m regatta_fleet.optimize.train.child SPEC ANSWER PARENT MEMORY`.

It trains by one step and writes one `TrainingResult` to ANSWER. Its limits are those of `process`.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from regatta_fleet.optimize.activations import record
from regatta_fleet.optimize.compare import compare, refusal
from regatta_fleet.optimize.cost import count_macs, count_weights
from regatta_fleet.optimize.model_file import ModelTree, model_bytes, parse_model, read_model
from regatta_fleet.optimize.process import serve
from regatta_fleet.optimize.prune.budget import output_prices
from regatta_fleet.optimize.prune.refit import refit
from regatta_fleet.optimize.prune.weights import packed_bytes
from regatta_fleet.optimize.quantize.engine import Source
from regatta_fleet.optimize.quantize.recipes import rounded_int4_recipe
from regatta_fleet.optimize.report import LayerReport
from regatta_fleet.optimize.samples import Samples, read_samples
from regatta_fleet.optimize.steps import Attempt, Made, ModelCost
from regatta_fleet.optimize.train.distill import BLENDS, Distilled, distill
from regatta_fleet.optimize.train.options import FitOptions, epochs_within
from regatta_fleet.optimize.train.quantize import train_quantized, training_options
from regatta_fleet.optimize.train.sparsity import sparsify
from regatta_fleet.optimize.train.steps import Distill, Sparsify, TrainingResult, TrainingSpec, TrainQuantized
from regatta_protocol.durable import write_durably
from regatta_protocol.errors import Rejected

__all__ = ["main"]

_MAX_TUNING_SAMPLES = 2048  # bounds memory; epochs fall as samples rise
_MAX_NAME = 128
_WORTH = 0.9  # of the compressed size: less is not worth a variant
_FIRST_TRY = (BLENDS[-1],)  # the teacher alone at T = 2: the share to prune is found before a and T are searched


def main(arguments: list[str]) -> int:
    """Run the step; 0 when an answer was written."""
    torch.set_num_threads(1)  # the networks here are small, and one thread repeats itself bit by bit
    return serve(arguments, TrainingSpec, _run, lambda spec: f"step {spec.step.kind} of {spec.step.model}")


def _run(spec: TrainingSpec) -> TrainingResult:
    step = spec.step
    try:
        model = read_model(Path(step.model))
        samples = _some(read_samples(Path(step.samples)))
        if isinstance(step, TrainQuantized):
            return _train_quantized(step, model, samples)
        held_back = _some(read_samples(Path(step.held_back)))
        if isinstance(step, Distill):
            return _distill(step, model, samples, held_back)
        return _sparsify(step, model, samples, held_back)
    except RuntimeError as err:
        if "allocate memory" in str(err):  # how PyTorch says MemoryError
            raise MemoryError(str(err)) from err
        raise Rejected(f"PyTorch cannot train {Path(step.model).name}: {err}") from err


def _distill(step: Distill, model: ModelTree, samples: Samples, held_back: Samples) -> TrainingResult:
    attempts: list[Attempt] = []
    prices = output_prices(model, "reconstruction", samples.x)
    for share in step.shares:
        pruned = prices.pruned(share)
        refit(model, pruned, samples.x)
        options = _within(pruned.model, samples, FitOptions())
        seeds = (step.seed, step.seed + 1, step.seed + 2)
        first = seeds[:1]
        tried = distill(pruned.model, model, samples, held_back, options=options, blends=_FIRST_TRY, seeds=first)
        reason = _verdict(model, tried.judged, held_back, step.max_drop)
        notes: tuple[str, ...] = (
            f"{pruned.removed} filters of {len(pruned.slimmed)} groups pruned where the output feels it least",
        )
        cost = ModelCost(macs=count_macs(pruned.model), weights=count_weights(pruned.model))
        content = tried.content
        if reason is None:
            found = distill(pruned.model, model, samples, held_back, options=options, seeds=seeds)
            content, notes = found.content, (*notes, *_words(found))
            write_durably(Path(step.output), content, mode=0o644)
        attempts.append(Attempt(share=share, notes=notes, size_bytes=len(content), cost=cost, reason=reason))
        if reason is None:
            break
    return TrainingResult(attempts=tuple(attempts))


def _sparsify(step: Sparsify, model: ModelTree, samples: Samples, held_back: Samples) -> TrainingResult:
    attempts: list[Attempt] = []
    before = packed_bytes(model_bytes(model))
    for share in step.shares:
        made = sparsify(model, samples, share, options=_within(model, samples, FitOptions()), seed=step.seed)
        reason = _verdict(model, made.content, held_back, step.max_drop)
        packed = packed_bytes(made.content)
        if reason is None and packed > _WORTH * before:
            reason = f"its zeros save too little: {packed:,} bytes compressed, {before:,} without zeros"
        notes = (
            f"{100 * made.sparsity:.0f} % of the weights made zero while training",
            f"{packed:,} bytes compressed by zlib, {before:,} before",
        )
        cost = ModelCost(macs=count_macs(model), weights=count_weights(model))
        size_bytes = len(made.content)
        attempts.append(Attempt(share=share, notes=notes, size_bytes=size_bytes, cost=cost, reason=reason))
        if reason is None:
            write_durably(Path(step.output), made.content, mode=0o644)
            break
    return TrainingResult(attempts=tuple(attempts))


def _train_quantized(step: TrainQuantized, model: ModelTree, samples: Samples) -> TrainingResult:
    options = _within(model, samples, training_options(step.precision))
    trained = train_quantized(model, model, samples, step.precision, options=options, seed=step.seed)
    source = Source(trained.model)
    if step.precision == "int8":
        source.calibrate(samples.x)
        quantized = source.quantize_by("int8")
    else:
        quantized = source.quantize(rounded_int4_recipe())
    write_durably(Path(step.output), quantized.content, mode=0o644)
    words = {
        "int8": "weights and activations int8, trained to be (min-max ranges)",
        "int4-weights": "weights int4, trained to be (depthwise int8), computed in float",
    }
    notes = (
        words[step.precision],
        f"{options.epochs} epochs on {len(samples)} samples, loss {trained.losses[0]:.4f} to {trained.losses[-1]:.4f}",
        *quantized.rewritten,
    )
    layers = tuple(
        LayerReport(
            name=layer.name.split(";")[0][:_MAX_NAME], kind=layer.kind, weights=layer.weights, precision=layer.precision
        )
        for layer in quantized.layers
    )
    return TrainingResult(made=Made(scheme=step.precision, notes=notes, layers=layers))


def _words(found: Distilled) -> tuple[str, ...]:
    blend = "squared error" if found.blend is None else f"a = {found.blend.alpha:g}, T = {found.blend.temperature:g}"
    chosen = f" (best of {found.tried})" if found.tried else ""
    scores = f"on {found.held_out} samples held out: {found.with_teacher} with the teacher"
    if found.without_teacher is not None:
        scores += f", {found.without_teacher} without"
    return (f"distilled from the original, {blend}{chosen}", f"{scores}, {found.untrained:.3f} untrained")


def _verdict(model: ModelTree, content: bytes, held_back: Samples, max_drop: float) -> str | None:
    output = int(model.subgraphs[0].outputs[0])
    wanted = record(model_bytes(model), held_back.x, [output])[output]
    student = parse_model(content)
    place = int(student.subgraphs[0].outputs[0])
    given = record(content, held_back.x, [place])[place]
    return refusal(compare(given, wanted, held_back.y), max_drop)


def _within(model: ModelTree, samples: Samples, options: FitOptions) -> FitOptions:
    return replace(options, epochs=epochs_within(options.epochs, count_macs(model), len(samples)))


def _some(samples: Samples) -> Samples:
    return samples.chosen(np.arange(len(samples)) < _MAX_TUNING_SAMPLES)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
