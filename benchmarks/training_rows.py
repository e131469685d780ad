"""The files that `bench_optimize.py training` measures: pruned, distilled, sparse and trained to be quantized."""

from __future__ import annotations

from pathlib import Path

import torch

from regatta_fleet.optimize.model_file import ModelTree, model_bytes, read_model
from regatta_fleet.optimize.prune.budget import prune_macs
from regatta_fleet.optimize.prune.filters import Criterion, Scores, prune_filters
from regatta_fleet.optimize.prune.refit import refit
from regatta_fleet.optimize.prune.weights import packed_bytes, prune_weights
from regatta_fleet.optimize.quantize.engine import Source
from regatta_fleet.optimize.quantize.recipes import rounded_int4_recipe
from regatta_fleet.optimize.samples import Samples
from regatta_fleet.optimize.train.distill import distill
from regatta_fleet.optimize.train.quantize import train_quantized
from regatta_fleet.optimize.train.sparsity import sparsify
from regatta_fleet.optimize.train.taylor import taylor_scores

__all__ = ["kws_files", "trained_int4"]

SHARE = 0.25  # of the multiply-accumulates
UNIFORM = 0.14  # of every group's filters: about as many multiply-accumulates
SPARSITY = 0.5
HELD_OUT = 3


def kws_files(path: Path, tuning: Samples, scratch: Path) -> dict[str, Path]:
    """Return the files of keyword spotting by name; prints how distillation did over its seeds."""
    torch.set_num_threads(1)
    model, unlabelled = read_model(path), Samples(tuning.x)
    held = torch.arange(len(tuning)).numpy() % HELD_OUT == HELD_OUT - 1
    fit, rest = unlabelled.chosen(~held), unlabelled.chosen(held)
    contents: dict[str, bytes] = {}
    criteria: dict[str, Criterion | Scores] = {
        "l1": "l1",
        "l2": "l2",
        "median": "geometric-median",
        "taylor": taylor_scores(model, unlabelled),
        "rebuilt": "reconstruction",
    }
    for name, criterion in criteria.items():
        everywhere = prune_filters(model, UNIFORM, criterion, tuning.x)
        refit(model, everywhere, tuning.x)
        contents[f"uniform, {name}"] = model_bytes(everywhere.model)
    pruned = prune_macs(model, SHARE, samples=fit.x)
    refit(model, pruned, fit.x)
    contents["by the output"] = model_bytes(pruned.model)
    for words, samples, held_out in (
        ("labels", tuning.chosen(~held), tuning.chosen(held)),
        ("no labels", fit, rest),
    ):
        found = distill(pruned.model, model, samples, held_out)
        print(
            f"KWS, {100 * SHARE:g} % of MACs pruned, {words}, {found.held_out} samples held out, 3 seeds: "
            f"{found.with_teacher} with the teacher ({found.blend}), {found.without_teacher} without, "
            f"{found.untrained:.3f} untrained"
        )
        contents["distilled" if words == "no labels" else "distilled, labels"] = found.content
    (scratch / "student.tflite").write_bytes(contents["distilled"])
    contents["distilled, int8"] = _int8(read_model(scratch / "student.tflite"), tuning)
    contents["sparse 50 %"] = model_bytes(prune_weights(model, sparsity=SPARSITY).model)
    contents["sparse 50 %, trained"] = sparsify(model, unlabelled, SPARSITY).content
    for name in ("sparse 50 %", "sparse 50 %, trained"):
        before, after = packed_bytes(model_bytes(model)), packed_bytes(contents[name])
        print(f"KWS, {name}: {after:,} bytes in zlib, {before:,} without zeros")
    contents["int8"] = _int8(model, tuning)
    contents["int8-trained"] = _int8(train_quantized(model, model, unlabelled, "int8").model, tuning)
    return {**_written("KWS", contents, scratch), **trained_int4("KWS", path, unlabelled, scratch)}


def trained_int4(name: str, path: Path, tuning: Samples, scratch: Path) -> dict[str, Path]:
    """Return int4 weights by least squared error, and trained on the samples."""
    torch.set_num_threads(1)
    model = read_model(path)
    trained = train_quantized(model, model, tuning, "int4-weights").model
    contents = {
        "int4-weights": Source(model).quantize_by("int4-weights").content,
        "int4-trained": Source(trained).quantize(rounded_int4_recipe()).content,
    }
    return _written(f"{name}-int4", contents, scratch)


def _int8(model: ModelTree, tuning: Samples) -> bytes:
    source = Source(model)
    source.calibrate(tuning.x)
    return source.quantize_by("int8").content


def _written(name: str, contents: dict[str, bytes], scratch: Path) -> dict[str, Path]:
    paths = {}
    for place, (variant, content) in enumerate(contents.items()):
        paths[variant] = scratch / f"{name}-{place}.tflite"
        paths[variant].write_bytes(content)
    return paths
