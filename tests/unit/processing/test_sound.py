"""Sounds become the features that TensorFlow and librosa compute, in samples of the model's size."""

from __future__ import annotations

import io
import wave

import numpy as np
import numpy.typing as npt
import pytest

from regatta_agent.processing.sound import as_sound, decode_wav, samples_of
from regatta_agent.processing.spectrum import features_of, mel_weights
from regatta_protocol.errors import Rejected, TooLarge
from regatta_protocol.plain import read
from regatta_protocol.processing import AudioInput

_KWS = AudioInput()
_AD = read(AudioInput,
    {
        "features": "log_mel", "window_samples": 1024, "stride_samples": 512, "fft_samples": 1024, "mel_bins": 128,
        "low_hz": 0, "high_hz": 8000, "mel_scale": "slaney", "power": 2, "log": "db", "log_offset": 2.2e-16,
        "center": True, "frames": 5, "frame_step": 1,
    }
)  # fmt: skip


def _chirp(seconds: float, rate: int = 16_000) -> npt.NDArray[np.float32]:
    t = np.arange(int(rate * seconds)) / rate
    sound: npt.NDArray[np.float32] = (
        0.5 * np.sin(2 * np.pi * (300 + 900 * t) * t) + 0.1 * np.sin(2 * np.pi * 2500 * t)
    ).astype(np.float32)
    return sound


def _wav(samples: npt.NDArray[np.generic], width: int, rate: int = 16_000, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(samples.tobytes())
    return file.getvalue()


def test_log_mel_is_librosas() -> None:
    """librosa 0.11: 10 · log10(melspectrogram(y, sr=16000, n_fft=1024, hop_length=512, n_mels=128) + eps), ad01's."""
    features = features_of(_chirp(2.0), _AD)

    assert features.shape == (63, 128)
    expected = [-90.40706092, -89.28895017, -89.94977108, -88.64423701, -89.08886539]
    np.testing.assert_allclose(features[10, :5], expected, atol=1e-3)
    np.testing.assert_allclose(features[40, 60:64], [-90.50604296, -89.40807866, -88.39301755, -87.21450798], atol=1e-3)


def test_mfcc_is_the_cosine_transform_of_log_mel() -> None:
    """Against scipy's transform and spectrum: tf.signal.mfccs_from_log_mel_spectrograms is dct / sqrt(2 · bins)."""
    fft = pytest.importorskip("scipy.fft")
    sound = _chirp(1.0)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(480) / 480)
    frames = np.stack([sound[start : start + 480] * window for start in range(0, 16_000 - 480 + 1, 320)])
    mel = np.abs(fft.rfft(frames, 512, axis=1)) @ mel_weights(_KWS)
    expected = fft.dct(np.log(mel + 1e-6), type=2, axis=1)[:, :10] / np.sqrt(80)

    features = features_of(sound, _KWS)

    assert features.shape == (49, 10)
    np.testing.assert_allclose(features, expected, atol=1e-3)


def test_mel_triangles_of_tensorflow() -> None:
    """tf.signal.linear_to_mel_weight_matrix(40, 257, 16000, 20, 4000): no constant part, neighbors add to 1."""
    weights = mel_weights(_KWS)

    assert weights.shape == (257, 40)
    assert not weights[0].any() and not weights[129:].any()
    inner = weights[4:120].sum(axis=1)  # between the first and the last center
    np.testing.assert_allclose(inner, 1.0, atol=1e-9)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_of_pcm_is_read(width: int) -> None:
    """The same sound within one step of the width."""
    sound = _chirp(0.1)
    if width == 1:
        data = np.round(sound * 128 + 128).astype(np.uint8)
    else:
        whole = np.round(sound.astype(np.float64) * (1 << (8 * width - 1))).astype("<i4")
        data = np.frombuffer(whole.tobytes(), dtype=np.uint8).reshape(-1, 4)[:, :width]

    read = decode_wav(_wav(np.ascontiguousarray(data), width), 16_000)

    assert read.dtype == np.float32
    np.testing.assert_allclose(read, sound, atol=1.01 / (1 << (8 * width - 1)))


def test_stereo_is_averaged_and_another_rate_resampled() -> None:
    """A tone of 1 kHz at 44.1 kHz stays one at 16 kHz, away from the edges."""
    t = np.arange(44_100) / 44_100
    tone = np.sin(2 * np.pi * 1000 * t)
    both = np.stack([tone * 32_000, np.zeros_like(tone)], axis=1).astype("<i2")

    read = decode_wav(_wav(both, 2, 44_100, 2), 16_000)

    expected = 0.5 * 32_000 / 32_768 * np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)
    assert len(read) == 16_000
    np.testing.assert_allclose(read[200:-200], expected[200:-200], atol=2e-3)


def test_a_clip_is_cut_or_filled_and_a_stream_is_windowed() -> None:
    """Without frame_step one sample whatever the length; with it one for every window of frames."""
    assert samples_of(_chirp(0.3), _KWS).shape == (1, 490)
    assert samples_of(_chirp(3.0), _KWS).shape == (1, 490)
    assert samples_of(_chirp(2.0), _AD).shape == (59, 640)
    assert samples_of(_chirp(0.01), _AD).shape == (1, 640)


@pytest.mark.parametrize("data", [b"", b"RIFF", b"RIFF\x04\0\0\0WAVE", _wav(np.zeros(0, dtype="<i2"), 2)])
def test_damaged_files_are_refused(data: bytes) -> None:
    with pytest.raises(Rejected):
        decode_wav(data, 16_000)


def test_what_is_no_sound_is_refused() -> None:
    with pytest.raises(Rejected, match="INT16 or FP32"):
        as_sound(np.zeros((2, 100), dtype=np.int16))
    with pytest.raises(TooLarge, match="60 s"):
        decode_wav(_wav(np.zeros(8000 * 61, dtype="<i2"), 2, 8000), 16_000)
