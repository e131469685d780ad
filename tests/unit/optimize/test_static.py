"""Static quantization really quantizes, stays near the float model, and refuses what it cannot do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from regatta_fleet.optimize.activations import record
from regatta_fleet.optimize.model_builder import ModelBuilder
from regatta_fleet.optimize.model_file import ModelTree, constant, model_bytes, parse_model, read_model, set_constant
from regatta_fleet.optimize.quantize.static import quantize_static, quantized_layers
from regatta_protocol.errors import Rejected
from regatta_runtimes.score import snr_db
from shared_data import shared_file
from small_models import Floats, depthwise_chain, normal, plain_chain, residual


def _float_outputs(model: ModelTree, samples: Floats) -> Floats:
    output = int(model.subgraphs[0].outputs[0])
    return record(model_bytes(model), samples, [output])[output]


def _int8_outputs(content: bytes, samples: Floats) -> Floats:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    source, output = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    (scale, zero), (out_scale, out_zero) = source["quantization"], output["quantization"]
    found = []
    for sample in samples:
        native = np.clip(np.rint(sample / scale + zero), -128, 127).astype(np.int8)
        interpreter.set_tensor(source["index"], native.reshape(source["shape"]))
        interpreter.invoke()
        found.append((interpreter.get_tensor(output["index"])[0].astype(np.float32) - out_zero) * out_scale)
    outputs: Floats = np.stack(found).astype(np.float32)
    return outputs


@pytest.mark.parametrize("build", [plain_chain, depthwise_chain, residual])
def test_int8_stays_near_float(build: Callable[[], ModelTree]) -> None:
    model = build()
    shape = tuple(int(size) for size in model.subgraphs[0].tensors[0].shape[1:])
    samples = normal(60, *shape, seed=3, scale=1.0)

    content = quantize_static(model, samples)

    done, layers = quantized_layers(parse_model(content))
    assert done == layers > 0
    assert snr_db([_int8_outputs(content, samples)], [_float_outputs(model, samples)]) > 20


def test_old_files_are_quantized_after_all() -> None:
    """MLPerf Tiny's files keep operators in the deprecated field: unnormalized, the quantizer would change nothing."""
    model = read_model(shared_file("mlperf_tiny/pretrainedResnet.tflite"))

    content = quantize_static(model, normal(4, 32, 32, 3, scale=50.0))

    done, layers = quantized_layers(parse_model(content))
    assert done == layers == 10


def test_a_tensor_of_zero_range_is_fine() -> None:
    """A layer whose weights are all zero has no range; the file still runs, with finite answers.

    It is not accurate: ai-edge-quantizer's scale of 8e-12 cannot hold the bias. Comparing with float refuses it.
    """
    model = plain_chain()
    tensor = model.subgraphs[0].tensors[model.subgraphs[0].operators[0].inputs[1]]
    values = constant(model, tensor)
    assert values is not None
    set_constant(model, tensor, np.zeros_like(values))
    samples = normal(10, 8, 8, 1, seed=3, scale=1.0)

    content = quantize_static(model, samples)

    assert np.isfinite(_int8_outputs(content, samples)).all()


def test_one_channel_is_fine() -> None:
    builder = ModelBuilder("one channel")
    place = builder.input("x", (1, 4, 4, 1))
    place = builder.conv("a", place, normal(1, 3, 3, 1), normal(1), (1, 4, 4, 1))
    model = builder.finish([place])
    samples = normal(10, 4, 4, 1, seed=3, scale=1.0)

    content = quantize_static(model, samples)

    assert snr_db([_int8_outputs(content, samples)], [_float_outputs(model, samples)]) > 20


def test_no_samples_are_refused() -> None:
    with pytest.raises(Rejected, match="no samples"):
        quantize_static(plain_chain(), np.zeros((0, 8, 8, 1), np.float32))


def test_a_model_without_weights_is_refused() -> None:
    builder = ModelBuilder("softmax")
    model = builder.finish([builder.softmax("s", builder.input("x", (1, 4)), (1, 4))])

    with pytest.raises(Rejected, match="none of the 0 layers"):
        quantize_static(model, normal(4, 4))


def test_a_second_input_is_refused() -> None:
    builder = ModelBuilder("two inputs")
    left, right = builder.input("x", (1, 4)), builder.input("y", (1, 4))
    model = builder.finish([builder.add("sum", left, right, (1, 4))])

    with pytest.raises(Rejected, match="2 inputs"):
        quantize_static(model, normal(4, 4))
