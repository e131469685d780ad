"""A model's interface checks every tensor, speaks real and native values, and names classes."""

from __future__ import annotations

import numpy as np
import pytest

from regatta_agent.serving.inference import InferRequest, NamedTensor, WantedOutput
from regatta_agent.serving.interface import ModelInterface, body_limit_bytes, image_input
from regatta_agent.serving.tensors import Array, datatype_of
from regatta_protocol.errors import Rejected
from regatta_protocol.values import TensorSpec

INT8 = TensorSpec(name="x", dtype="int8", shape=(1, 4), scale=0.5, zero_point=-1)
SCORES = TensorSpec(name="y", dtype="uint8", shape=(1, 3), scale=0.01, zero_point=0)
MODEL = ModelInterface([INT8], [SCORES], labels=("cat", "dog"))


def _request(*arrays: Array, name: str = "x", outputs: tuple[WantedOutput, ...] = ()) -> InferRequest:
    inputs = tuple(NamedTensor(name, datatype_of(array.dtype), array) for array in arrays)
    return InferRequest(None, inputs, outputs, binary_default=False)


def test_real_values_are_quantized_and_answered_in_real_values() -> None:
    """FP32 to an int8 input: q = real / scale + zero_point, clipped; the answer is FP32 too."""
    natives, real = MODEL.to_native(_request(np.array([[0.0, 0.5, 1000.0, -1000.0]], dtype=np.float32)))
    tensors = MODEL.answer([np.array([[100, 0, 50]], dtype=np.uint8)], MODEL.wanted(_request()), real=real)

    assert natives[0].dtype == np.int8
    assert natives[0].tolist() == [[-1, 0, 127, -128]]
    assert tensors[0][0].datatype == "FP32"
    np.testing.assert_allclose(tensors[0][0].array, [[1.0, 0.0, 0.5]], rtol=1e-6)


def test_native_values_pass_as_they_are() -> None:
    """INT8 in gives the file's own type out."""
    array = np.array([[1, 2, 3, 4]], dtype=np.int8)
    natives, real = MODEL.to_native(_request(array))
    tensors = MODEL.answer([np.array([[1, 2, 3]], dtype=np.uint8)], MODEL.wanted(_request()), real=real)

    assert natives[0] is array
    assert (real, tensors[0][0].datatype) == (False, "UINT8")


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (_request(np.zeros((1, 4), dtype=np.float32), name="z"), "no input 'z'"),
        (_request(), "missing"),
        (_request(np.zeros((1, 4), dtype=np.int8), np.zeros((1, 4), dtype=np.int8)), "twice"),
        (_request(np.zeros((1, 5), dtype=np.int8)), "shape"),
        (_request(np.zeros((4,), dtype=np.int8)), "shape"),
        (_request(np.zeros((1, 4), dtype=np.uint8)), "INT8 or FP32 in real values and UINT8 came"),
        (_request(np.full((1, 4), np.nan, dtype=np.float32)), "NaN"),
        (_request(np.full((1, 4), np.inf, dtype=np.float32)), "NaN"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(request_: InferRequest, says: str) -> None:
    """Wrong name, count, shape, datatype and NaN each have their words."""
    with pytest.raises(Rejected, match=says):
        MODEL.to_native(request_)


def test_what_is_not_finite_passes_where_the_policy_lets_it() -> None:
    """A model of real numbers gets NaN as it came; integers cannot hold it, whatever the policy."""
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 4))
    array = np.full((1, 4), np.nan, dtype=np.float32)

    natives, _ = ModelInterface([spec], [SCORES], non_finite="pass").to_native(_request(array))

    assert natives[0] is array
    with pytest.raises(Rejected, match="NaN"):
        ModelInterface([INT8], [SCORES], non_finite="pass").to_native(_request(array))


@pytest.mark.parametrize("outputs", [("q",), ("y", "y")])
def test_outputs_that_do_not_exist_are_refused(outputs: tuple[str, ...]) -> None:
    """An unknown output, or one asked for twice, is an error."""
    with pytest.raises(Rejected, match="output"):
        MODEL.wanted(_request(outputs=tuple(WantedOutput(name, binary=False) for name in outputs)))


def test_classes_are_named_best_first() -> None:
    """score:index:label, and no label where the file ends before the class."""
    wanted = MODEL.wanted(_request(outputs=(WantedOutput("y", binary=False, classes=5),)))

    tensors = MODEL.answer([np.array([[10, 50, 90]], dtype=np.uint8)], wanted, real=False)
    of_two = MODEL.answer([np.array([[10, 50, 90], [7, 7, 8]], dtype=np.uint8)], wanted, real=False)[0][0].array

    assert tensors[0][0].array.tolist() == [[b"0.900000:2", b"0.500000:1:dog", b"0.100000:0:cat"]]
    assert of_two.tolist() == [*tensors[0][0].array.tolist(), [b"0.080000:2", b"0.070000:0:cat", b"0.070000:1:dog"]]
    assert MODEL.predicted_class([np.array([[10, 50, 90]], dtype=np.uint8)]) == 2


def test_a_float_model_takes_only_what_it_can_hold() -> None:
    """FP64 is narrowed for a float32 input, integers are refused, and changeable sizes take any."""
    model = ModelInterface([TensorSpec(name="x", dtype="float32", shape=(-1, 2))], [SCORES])

    natives, real = model.to_native(_request(np.ones((3, 2), dtype=np.float64)))

    assert natives[0].dtype == np.float32
    assert (natives[0].shape, real) == ((3, 2), False)
    with pytest.raises(Rejected, match="INT8 came"):
        model.to_native(_request(np.ones((3, 2), dtype=np.int8)))
    with pytest.raises(Rejected, match="shape"):
        model.to_native(_request(np.ones((0, 2), dtype=np.float32)))


def test_the_raw_form_is_for_one_fixed_input() -> None:
    """A body without JSON is the whole native tensor."""
    request = InferRequest(None, (), (), binary_default=True, raw=memoryview(b"\x01\x02\x03\x04"))

    assert MODEL.to_native(request)[0][0].tolist() == [[1, 2, 3, 4]]
    with pytest.raises(Rejected, match="one input"):
        ModelInterface([INT8, SCORES], [SCORES]).to_native(request)


@pytest.mark.parametrize(
    ("dtype", "zero_point", "mean"), [("uint8", 128, 128.0), ("int8", -1, 127.0), ("int8", 0, 128.0)]
)
def test_a_picture_s_pixels_become_the_quantized_integers(dtype: str, zero_point: int, mean: float) -> None:
    """Without a manifest, pixel p becomes p (uint8) or p − 128 (int8) after quantization."""
    spec = TensorSpec(name="x", dtype=dtype, shape=(1, 2, 2, 3), scale=0.02, zero_point=zero_point)
    image = image_input([spec])
    assert image is not None
    pixels = np.array([0, 1, 77, 255] * 3, dtype=np.float32).reshape(1, 2, 2, 3)

    native = ModelInterface([spec], [SCORES]).to_native(
        _request((pixels - np.float32(image.mean)) * np.float32(image.scale))
    )[0][0]

    assert image.mean == mean
    np.testing.assert_array_equal(native.astype(int), pixels.astype(int) - (128 if dtype == "int8" else 0))


def test_what_is_no_picture_has_no_image_input() -> None:
    """Two inputs, another rank or another number of channels are no picture."""
    assert image_input([INT8]) is None
    assert image_input([TensorSpec(name="x", dtype="float32", shape=(1, 8, 8, 2))]) is None


def test_the_body_s_limit_follows_the_input() -> None:
    """JSON of a whole input fits, and a thousand times that does not."""
    limit = body_limit_bytes([TensorSpec(name="x", dtype="float32", shape=(1, 100, 100))])

    assert 10_000 * 25 < limit < 1_000_000
