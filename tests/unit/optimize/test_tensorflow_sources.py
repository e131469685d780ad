"""SavedModels and Keras files become .tflite files by TensorFlow, and what cannot is named."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from regatta_fleet.optimize.evaluate import answers_of
from regatta_fleet.optimize.sources.resolve import resolve_source
from regatta_protocol.errors import Rejected

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="the extra [tensorflow] is not installed"
)

# Run in a process of its own: TensorFlow stays out of the tests'.
_MAKE = """
import sys
from pathlib import Path
import numpy as np
import tensorflow as tf

folder, layers = Path(sys.argv[1]), tf.keras.layers
tf.keras.utils.set_random_seed(0)
net = tf.keras.Sequential([layers.Input((6, 6, 2)), layers.Conv2D(8, 3, activation="relu"), layers.DepthwiseConv2D(3),
                           layers.BatchNormalization(), layers.Flatten(), layers.Dense(3, activation="softmax")])
net.save(folder / "net.keras")
net.export(folder / "net", verbose=False)
x = np.random.RandomState(0).standard_normal((12, 6, 6, 2)).astype(np.float32)
np.savez(folder / "samples.npz", x=x)
np.save(folder / "answers.npy", net(x).numpy())
loose = tf.keras.Sequential([layers.Input((None, None, 2)), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D()])
loose.save(folder / "loose.keras")

class Several(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((1, 6, 6, 2))])
    def sums(self, x):
        return {"y": tf.reduce_sum(x, [1, 2])}

    @tf.function(input_signature=[tf.TensorSpec((1, 6, 6, 2))])
    def determinant(self, x):
        return {"y": tf.linalg.det(x[:, :2, :2, 0])}

several = Several()
tf.saved_model.save(several, folder / "several", {"sums": several.sums, "determinant": several.determinant})
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorflow")
    made = subprocess.run([sys.executable, "-c", _MAKE, str(folder)], capture_output=True, timeout=170, check=False)
    assert made.returncode == 0, made.stderr.decode()[-2000:]
    return folder


@pytest.mark.parametrize("name", ["net", "net.keras"])
def test_a_model_answers_as_in_keras(models: Path, tmp_path: Path, name: str) -> None:
    """A SavedModel by Keras has two signatures, serve and serving_default: the latter is taken."""
    samples, output = models / "samples.npz", tmp_path / "m.tflite"

    words = resolve_source(str(models / name), output, samples=samples)

    assert "by TensorFlow" in words[0]
    assert answers_of(output, samples) == pytest.approx(np.load(models / "answers.npy"), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "signature", "wanted"),
    [
        ("several", None, r"2 signatures \(.*\) and none is serving_default: name one by `signature:`"),
        ("several", "products", r"no signature 'products': it has .*sums"),
        ("several", "determinant", r"TFLite has no operator for TensorFlow's MatrixDeterminant$"),
        ("loose.keras", None, r"dynamic shape \[None, None, None, 2\]: export it with fixed sizes"),
    ],
)
def test_what_cannot_be_converted_is_named(
    models: Path, tmp_path: Path, name: str, signature: str | None, wanted: str
) -> None:
    output = tmp_path / "m.tflite"

    with pytest.raises(Rejected, match=wanted):
        resolve_source(str(models / name), output, samples=models / "samples.npz", signature=signature)

    assert not output.exists()
