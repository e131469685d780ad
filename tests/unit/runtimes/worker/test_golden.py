"""Golden samples: made by the reference kernels, read within limits, and compared only for gross wrongness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from regatta_protocol.errors import Rejected
from regatta_protocol.measurement import Outcome
from regatta_protocol.values import TensorSpec
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.worker.golden import write_golden
from regatta_runtimes.worker.measure import measure_file
from regatta_runtimes.worker.reference import SOUND_SNR_DB
from regatta_runtimes.worker.samples import read_evaluation, read_golden
from regatta_runtimes.worker.score import MAX_SNR_DB, snr_db
from regatta_runtimes.worker.session import Array, dequantize, quantize
from shared_data import shared_file
from tiny_models import dense_model

WEIGHTS = np.arange(12, dtype=np.float32).reshape(3, 4) - 5
FLOAT_INPUT = TensorSpec(name="in", dtype="float32", shape=(1, 4))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.tflite"
    path.write_bytes(dense_model(WEIGHTS, np.zeros(3, dtype=np.float32)))
    return path


def test_it_holds_inputs_and_each_variants_outputs(model: Path, tmp_path: Path) -> None:
    """As manifest.py describes the file; the same seed gives the same bytes of data."""
    golden = tmp_path / "golden.npz"

    write_golden({"a": model, "b": model}, golden, count=5, seed=7)

    with np.load(golden) as arrays:
        assert sorted(arrays.files) == ["in.0", "out.a.0", "out.b.0"]
        assert arrays["in.0"].shape == (5, 4)
        np.testing.assert_allclose(arrays["out.a.0"], arrays["in.0"] @ WEIGHTS.T, rtol=1e-4, atol=1e-5)


def test_it_uses_the_users_samples(model: Path, tmp_path: Path) -> None:
    """`x` of the samples file, at most count of them."""
    np.savez(tmp_path / "s.npz", x=np.ones((9, 2, 2), dtype=np.float32))

    write_golden({"a": model}, tmp_path / "g.npz", samples=tmp_path / "s.npz", count=4)

    with np.load(tmp_path / "g.npz") as arrays:
        assert arrays["out.a.0"].shape == (4, 3)


def test_samples_of_another_shape_are_rejected(model: Path, tmp_path: Path) -> None:
    """With both shapes in the message, and nothing written."""
    np.savez(tmp_path / "s.npz", x=np.ones((9, 5), dtype=np.float32))

    with pytest.raises(Rejected, match=r"\[9, 5\]"):
        write_golden({"a": model}, tmp_path / "g.npz", samples=tmp_path / "s.npz")
    assert not (tmp_path / "g.npz").exists()


def test_a_wrong_golden_output_is_wrong_output(model: Path, tmp_path: Path) -> None:
    """Outputs unrelated to the reference take the candidate out, with the figure."""
    write_golden({"v": model}, tmp_path / "g.npz")
    with np.load(tmp_path / "g.npz") as arrays:
        changed = {name: arrays[name] for name in arrays.files}
    changed["out.v.0"] = -changed["out.v.0"]
    np.savez(tmp_path / "bad.npz", **changed)

    sound = measure_file(Candidate("litert", "v", "none", 1), model, golden=tmp_path / "g.npz")
    wrong = measure_file(Candidate("litert", "v", "none", 1), model, golden=tmp_path / "bad.npz")

    assert (sound.outcome, sound.reason) == (Outcome.MEASURED, None)
    assert sound.golden_snr_db is not None
    assert sound.golden_snr_db > 60
    assert wrong.outcome == Outcome.WRONG_OUTPUT
    assert "dB against the reference kernels" in (wrong.reason or "")


def test_no_sound_candidate_of_a_real_model_is_called_wrong(tmp_path: Path) -> None:
    """ResNet8 int8 on a ramp: among the real cases that differ most between sound backends (see SOUND_SNR_DB)."""
    model = shared_file("mlperf_tiny/pretrainedResnet_quant.tflite")
    ramp = np.linspace(0, 255, 6 * 32 * 32 * 3, dtype=np.float32).reshape(6, 32, 32, 3)
    np.savez(tmp_path / "s.npz", x=ramp)
    write_golden({"v": model}, tmp_path / "g.npz", samples=tmp_path / "s.npz")

    for runtime, delegate in (("litert", "xnnpack"), ("litert", "none"), ("tflite", "none")):
        result = measure_file(Candidate(runtime, "v", delegate, 1), model, golden=tmp_path / "g.npz")
        assert result.outcome in (Outcome.MEASURED, Outcome.UNAVAILABLE), result.reason


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"y": np.zeros(3, dtype=np.int64)}, "must hold x and y"),
        ({"x": np.zeros((3, 4)), "y": np.zeros(2, dtype=np.int64)}, "one per sample"),
        ({"x": np.zeros((3, 5)), "y": np.zeros(3, dtype=np.int64)}, r"\[5\] \(5 values\)"),
        ({"x": np.zeros((3, 4)), "y": np.zeros(3)}, "must be integers"),
        ({"x": np.zeros((0, 4)), "y": np.zeros(0, dtype=np.int64)}, "array of numbers"),
    ],
)
def test_an_evaluation_set_that_does_not_fit_is_rejected(
    tmp_path: Path,
    arrays: dict[str, Array],
    words: str,
) -> None:
    """The message says which array, and both shapes."""
    np.savez(tmp_path / "e.npz", **arrays)

    with pytest.raises(Rejected, match=words):
        read_evaluation(tmp_path / "e.npz", FLOAT_INPUT)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no zip at all"])
def test_a_damaged_npz_is_rejected(tmp_path: Path, content: bytes) -> None:
    """Empty, cut off, foreign."""
    path = tmp_path / "g.npz"
    path.write_bytes(content)

    with pytest.raises(Rejected, match=r"g\.npz"):
        read_golden(path, "v", (FLOAT_INPUT,))


def test_pickled_objects_are_not_loaded(tmp_path: Path) -> None:
    """An .npz with an object array is refused: unpickling runs code."""
    np.savez(tmp_path / "g.npz", **{"in.0": np.array([{"a": 1}], dtype=object)})

    with pytest.raises(Rejected):
        read_golden(tmp_path / "g.npz", "v", (FLOAT_INPUT,))


def test_snr_of_known_noise() -> None:
    """Noise of a tenth of the signal's amplitude is 20 dB; equal is the cap; NaN is the floor."""
    reference = np.array([[1.0, -1.0, 1.0, -1.0]], dtype=np.float32)

    assert snr_db([reference * np.float32(1.1)], [reference]) == pytest.approx(20, abs=1e-3)
    assert snr_db([reference], [reference]) == MAX_SNR_DB
    assert snr_db([reference * np.nan], [reference]) == -MAX_SNR_DB


def test_unrelated_and_stuck_outputs_are_below_the_threshold() -> None:
    """Independent outputs of the same kind, and outputs stuck at one value, are gross wrongness."""
    generator = np.random.default_rng(0)
    reference, other = generator.normal(size=(2, 16, 10))

    assert snr_db([other], [reference]) < SOUND_SNR_DB
    assert snr_db([np.full_like(reference, reference.mean())], [reference]) < SOUND_SNR_DB


@given(st.floats(-3, 3), st.floats(1e-3, 1), st.integers(-128, 127))
def test_quantizing_and_back_is_within_half_a_step(real: float, scale: float, zero_point: int) -> None:
    """|x − dequantize(quantize(x))| ≤ scale/2 inside the range, and the range's end outside it."""
    spec = TensorSpec(name="t", dtype="int8", shape=(1,), scale=scale, zero_point=zero_point)

    back = float(dequantize(quantize(np.array([real]), spec), spec)[0])

    low, high = (-128 - zero_point) * scale, (127 - zero_point) * scale
    assert abs(back - min(max(real, low), high)) <= scale / 2 + 1e-5


@given(
    seed=st.integers(0, 2**32),
    shape=npst.array_shapes(min_dims=0, max_dims=3, max_side=8),
    given_as=st.sampled_from([np.float16, np.float32, np.float64, np.int64]),
    dtype=st.sampled_from(["int8", "uint8", "int16", "int32"]),
    scale=st.none() | st.floats(1e-6, 10),
    zero_point=st.integers(-128, 255),
)
def test_quantizing_is_the_equation_and_leaves_its_input(
    seed: int, shape: tuple[int, ...], given_as: type[np.number[Any]], dtype: str, scale: float | None, zero_point: int
) -> None:
    """Element by element round-half-even(real / scale + zero_point) in float64, clipped; the input is unchanged."""
    real = np.asarray(np.random.default_rng(seed).uniform(-1000, 1000, shape)).astype(given_as)
    spec = TensorSpec(
        name="a", dtype=dtype, shape=real.shape, scale=scale, zero_point=None if scale is None else zero_point
    )
    before, info = real.copy(), np.iinfo(dtype)

    native = quantize(real, spec)

    shift = 0 if scale is None else zero_point
    expected = [min(max(round(float(x) / (scale or 1.0) + shift), info.min), info.max) for x in before.ravel()]
    assert native.ravel().tolist() == expected
    assert (native.dtype, native.shape) == (np.dtype(dtype), real.shape or (1,))
    assert np.array_equal(real, before)


def test_nan_cannot_be_quantized() -> None:
    """It would silently become some integer."""
    spec = TensorSpec(name="t", dtype="int8", shape=(1,), scale=0.5, zero_point=0)

    with pytest.raises(Rejected, match="NaN"):
        quantize(np.array([np.nan]), spec)
