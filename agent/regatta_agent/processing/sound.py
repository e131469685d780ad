"""A sound as a model's input: decoded, brought to its sample rate, cut to samples of so many frames. Pure.

WAV files are read by the standard library: PCM of 8, 16, 24 or 32 bits; several channels are averaged.
"""

from __future__ import annotations

import io
import wave
from math import gcd

import numpy as np
import numpy.typing as npt

from regatta_agent.processing.spectrum import features_of
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Rejected, TooLarge
from regatta_protocol.processing import AudioInput

__all__ = ["MAX_SECONDS", "as_sound", "decode_wav", "samples_of"]

MAX_SECONDS = 60.0  # of one request: 1 s of ad01 is 31 inferences
_Sound = npt.NDArray[np.float32]


def decode_wav(data: bytes, sample_rate_hz: int) -> _Sound:
    """Return the sound of a WAV file, float32 [n] in -1…1, at the sample rate.

    Raises:
        Rejected: when it is no PCM WAV file, or holds nothing.
        TooLarge: when it is longer than MAX_SECONDS.
    """
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate, count, *_ = file.getparams()
            if count > MAX_SECONDS * rate:
                raise TooLarge(f"the sound lasts {count / rate:.1f} s and {MAX_SECONDS:g} s is the limit: cut it")
            raw = file.readframes(count)
    except (wave.Error, EOFError, ZeroDivisionError) as err:
        raise Rejected(f"this is no WAV file of PCM samples: {err}: convert it with ffmpeg -i FILE out.wav") from err
    whole = raw[: len(raw) // (width * channels) * width * channels]
    if not whole or rate < 1:
        raise Rejected("the WAV file holds no sound")
    mono = _pcm(whole, width).reshape(-1, channels).mean(axis=1, dtype=np.float32)
    return _resampled(mono, rate, sample_rate_hz)


def _pcm(raw: bytes, width: int) -> _Sound:
    if width == 1:
        return (np.frombuffer(raw, dtype=np.uint8).astype(np.float32) - 128.0) / 128.0
    if width == 3:
        wide = np.zeros((len(raw) // 3, 4), dtype=np.uint8)
        wide[:, 1:] = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 3)
        raw, width = wide.tobytes(), 4
    integers = np.frombuffer(raw, dtype=f"<i{width}")
    return (integers / float(1 << (8 * width - 1))).astype(np.float32)


def _resampled(sound: _Sound, rate: int, wanted: int) -> _Sound:
    """Return the sound at another sample rate, by cutting or filling its spectrum (no aliases)."""
    if rate == wanted:
        return sound
    common = gcd(rate, wanted)
    size = max(1, len(sound) * (wanted // common) // (rate // common))
    spectrum = np.fft.rfft(sound)
    return (np.fft.irfft(spectrum[: size // 2 + 1], n=size) * (size / len(sound))).astype(np.float32)


def as_sound(array: Array) -> _Sound:
    """Return samples as float32 [n] in -1…1: INT16 is PCM, FP32 is taken as it is.

    Raises:
        Rejected: when it is neither, or not one row.
    """
    flat = array.reshape(-1) if array.size and array.size == max(array.shape, default=0) else None
    if flat is None or array.dtype not in (np.int16, np.float32):
        raise Rejected(f"a sound is INT16 or FP32 [n], one channel, and {array.dtype} {list(array.shape)} came")
    sound = flat.astype(np.float32)
    return sound / np.float32(32768.0) if array.dtype == np.int16 else sound


def samples_of(sound: _Sound, audio: AudioInput) -> npt.NDArray[np.float32]:
    """Return the model's samples in real values, float32 [samples, frames · features per frame].

    One sample from the sound's beginning, filled up with silence, when there is no `frame_step`; else all the whole
    ones, `frame_step` frames apart, and at least one.

    Raises:
        TooLarge: when the sound is longer than MAX_SECONDS.
    """
    if len(sound) > MAX_SECONDS * audio.sample_rate_hz:
        raise TooLarge(f"the sound lasts {len(sound) / audio.sample_rate_hz:.1f} s and {MAX_SECONDS:g} s is the limit")
    if audio.frame_step is None:
        sound = sound[: audio.clip_samples]
    if len(sound) < audio.clip_samples:
        sound = np.pad(sound, (0, audio.clip_samples - len(sound)))
    peak = float(sound.max())  # not of magnitudes: so were MLPerf Tiny's keywords trained
    if audio.normalize == "peak" and peak > 0:
        sound = sound / np.float32(peak)
    features = features_of(sound, audio)
    starts = range(0, len(features) - audio.frames + 1, audio.frame_step or len(features))
    samples = np.stack([features[start : start + audio.frames].ravel() for start in starts])
    real: npt.NDArray[np.float32] = ((samples - audio.mean) * audio.scale).astype(np.float32)
    return real
