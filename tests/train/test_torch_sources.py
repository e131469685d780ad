"""PyTorch modules become .tflite files by litert-torch, and what cannot is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from regatta_fleet.optimize.evaluate import answers_of
from regatta_fleet.optimize.recipe.hooks import Hooks
from regatta_fleet.optimize.samples import Samples, write_samples
from regatta_fleet.optimize.sources.resolve import resolve_source
from regatta_protocol.errors import Rejected

_FACTORIES = """
import torch

def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(),
                               torch.nn.Linear(4 * 36, 3))

class Unique(torch.nn.Module):
    def forward(self, x):
        return torch.unique(x)

def make_model(seed):
    return Unique()
"""


@pytest.fixture(scope="module")
def factories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tried = subprocess.run([sys.executable, "-c", "import litert_torch"], capture_output=True, timeout=120, check=False)
    if tried.returncode != 0:
        words = tried.stderr.decode().strip().splitlines()[-1:]
        pytest.skip(f"the extra [train] is not installed whole: litert_torch cannot be imported: {words}")
    folder = tmp_path_factory.mktemp("torch")
    (folder / "net.py").write_text(_FACTORIES)
    x = np.random.RandomState(0).standard_normal((6, 6, 6, 2)).astype(np.float32)
    write_samples(folder / "last.npz", Samples(x))
    write_samples(folder / "first.npz", Samples(np.ascontiguousarray(x.transpose(0, 3, 1, 2))))
    return folder


def test_a_module_of_either_layout_answers_the_same(factories: Path, tmp_path: Path) -> None:
    source = f"{factories}/net.py:net"
    resolve_source(source, tmp_path / "first.tflite", samples=factories / "first.npz")
    resolve_source(source, tmp_path / "last.tflite", samples=factories / "last.npz", layout="channels-last")

    first = answers_of(tmp_path / "first.tflite", factories / "first.npz")
    last = answers_of(tmp_path / "last.tflite", factories / "last.npz")

    assert first == pytest.approx(last, abs=1e-5)


def test_what_cannot_be_converted_is_named(factories: Path, tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"does not take a sample of shape \[1, 6, 6, 2\].*layout: channels-last"):
        resolve_source(f"{factories}/net.py:net", tmp_path / "m.tflite", samples=factories / "last.npz")
    with pytest.raises(Rejected, match=r"net\.py: what hook make_model returned: litert-torch cannot convert it"):
        Hooks(factories / "net.py", 120, 8 << 30).make_model(factories / "first.npz", tmp_path / "m.tflite", 0, "as-is")

    assert not (tmp_path / "m.tflite").exists()
