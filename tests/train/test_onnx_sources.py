"""ONNX models become .tflite files by onnx2torch and litert-torch, and answer as in ONNX Runtime."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from regatta_fleet.cli import program
from regatta_fleet.optimize.evaluate import answers_of
from regatta_fleet.optimize.samples import Samples, write_samples
from regatta_fleet.optimize.sources.resolve import resolve_source
from regatta_protocol.errors import Rejected

_EXPORT = """
import sys, warnings
import torch
from torch import nn

warnings.simplefilter("ignore")

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
        pools = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(*pools, nn.Flatten(), nn.Linear(8, 4), nn.Softmax(1))

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.block(x))

class Strange(nn.Module):
    def forward(self, x):
        return torch.det(x)

class Pair(nn.Module):
    def forward(self, x, y):
        return x + y

def export(model, inputs, name, opset, **options):
    torch.onnx.export(model.eval(), inputs, sys.argv[1] + "/" + name, opset_version=opset, dynamo=False, **options)

torch.manual_seed(0)
picture = torch.zeros(1, 3, 16, 16)
free = {"x": {0: "n"}, "y": {0: "n"}}
export(Net(), (picture,), "new.onnx", 20, input_names=["x"], output_names=["y"], dynamic_axes=free)
export(Net(), (picture,), "old.onnx", 13)
export(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)), (torch.zeros(1, 6),), "rows.onnx", 17)
export(Strange(), (torch.zeros(1, 3, 3),), "strange.onnx", 17)
export(Pair(), (picture, picture), "pair.onnx", 17)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    command = [sys.executable, "-c", f"import onnx\n{_EXPORT}", str(folder)]
    exported = subprocess.run(command, capture_output=True, timeout=180, check=False)
    if exported.returncode != 0:
        words = exported.stderr.decode().strip().splitlines()[-1:]
        pytest.skip(f"the extras [train,onnx-import] are not installed whole: nothing can be exported: {words}")
    rng = np.random.default_rng(0)
    pictures = rng.random((6, 16, 16, 3), np.float32)
    write_samples(folder / "pictures.npz", Samples(pictures, rng.integers(0, 4, 6)))
    write_samples(folder / "first.npz", Samples(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))))
    write_samples(folder / "rows.npz", Samples(rng.standard_normal((4, 6)).astype(np.float32)))
    write_samples(folder / "squares.npz", Samples(rng.standard_normal((4, 3, 3)).astype(np.float32)))
    return folder


def _by_onnx_runtime(model: Path, samples: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    with np.load(samples) as file:
        return np.concatenate([session.run(None, {name: sample[None]})[0] for sample in file["x"]])


@pytest.mark.parametrize(
    ("name", "samples", "layout", "own"),
    [
        ("new", "pictures", "channels-last", "first"),
        ("old", "first", "as-is", "first"),
        ("rows", "rows", "as-is", "rows"),
    ],
    ids=["operator set 20, free batch, turned to [h, w, c]", "operator set 13, as it is", "rows"],
)
def test_it_answers_as_in_onnx_runtime(
    models: Path, tmp_path: Path, name: str, samples: str, layout: Literal["as-is", "channels-last"], own: str
) -> None:
    resolve_source(
        str(models / f"{name}.onnx"), tmp_path / "m.tflite", samples=models / f"{samples}.npz", layout=layout
    )

    found = answers_of(tmp_path / "m.tflite", models / f"{samples}.npz")

    assert found == pytest.approx(_by_onnx_runtime(models / f"{name}.onnx", models / f"{own}.npz"), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "samples", "words"),
    [
        ("strange", "squares", "Det"),
        ("pair", "first", "has 2 inputs"),
        ("old", "pictures", "layout: channels-last"),
        ("none", "first", "no ONNX model"),
    ],
    ids=["an operator that onnx2torch does not know", "two inputs", "the other layout", "another file"],
)
def test_what_cannot_be_converted_is_named_and_leaves_nothing(
    models: Path, tmp_path: Path, name: str, samples: str, words: str
) -> None:
    (models / "none.onnx").write_bytes(b"nothing of the kind")

    with pytest.raises(Rejected, match=words):
        resolve_source(str(models / f"{name}.onnx"), tmp_path / "m.tflite", samples=models / f"{samples}.npz")

    assert list(tmp_path.iterdir()) == []


def test_it_is_optimized_into_a_bundle(models: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"recipe: 1\nsteps:\n  - {{step: take, source: {models / 'new.onnx'}, layout: channels-last}}\n"
        "  - {step: quantize, schemes: [int8]}\n  - {step: evaluate, max_accuracy_drop: 50%}\n"
    )
    command = ["model", "optimize", "--recipe", str(recipe), "--data", str(models / "pictures.npz")]

    done = CliRunner().invoke(program, [*command, "--output", str(tmp_path / "bundle")])

    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "bundle" / "report.json").read_text())
    assert [variant["name"] for variant in report["variants"]] == ["float32", "int8"]
