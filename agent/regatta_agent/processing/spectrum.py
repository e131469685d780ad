"""Mel spectra and cepstra of sounds, as TensorFlow and librosa define them. Pure.

- htk: mel = 1127 · ln(1 + f / 700), triangles of height 1 linear in mel (tf.signal.linear_to_mel_weight_matrix).
- slaney: linear below 1 kHz, logarithmic above, triangles linear in Hz of area 2 / width (librosa.filters.mel).
- MFCC: the cosine transform (type 2) of log-mel, times 1 / sqrt(2 · bins)
  (tf.signal.mfccs_from_log_mel_spectrograms, without HTK's liftering).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from regatta_protocol.processing import AudioInput

__all__ = ["features_of", "mel_weights"]

_Floats = npt.NDArray[np.float64]
_KNEE_HZ, _KNEE_MEL, _HZ_PER_MEL, _LOG_STEP = 1000.0, 15.0, 200.0 / 3.0, float(np.log(6.4) / 27.0)


def features_of(sound: npt.NDArray[np.float32], audio: AudioInput) -> npt.NDArray[np.float32]:
    """Return the features of each frame, float32 [frames, features per frame].

    Args:
        sound: float32 [n] in -1…1, at the description's sample rate and at least one frame long.
        audio: the description.
    """
    magnitude = np.abs(np.fft.rfft(_frames(sound, audio), n=audio.fft_samples, axis=1))
    mel = (magnitude if audio.power == 1 else magnitude**2) @ mel_weights(audio)
    log_mel = np.log(mel + audio.log_offset)
    if audio.log == "db":
        log_mel *= 10.0 / np.log(10.0)
    features = log_mel if audio.features == "log_mel" else log_mel @ _cosines(audio.mel_bins, audio.coefficients)
    result: npt.NDArray[np.float32] = features.astype(np.float32)
    return result


def _frames(sound: npt.NDArray[np.float32], audio: AudioInput) -> _Floats:
    """Return the windowed frames, [frames, window] or, centered, [frames, fft]."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(audio.window_samples) / audio.window_samples)  # periodic Hann
    size = audio.window_samples
    if audio.center:
        sound = np.pad(sound, audio.fft_samples // 2)
        size = audio.fft_samples
        before = (size - audio.window_samples) // 2
        window = np.pad(window, (before, size - audio.window_samples - before))
    slices = np.lib.stride_tricks.sliding_window_view(sound, size)[:: audio.stride_samples]
    windowed: _Floats = slices.astype(np.float64) * window
    return windowed


@lru_cache(maxsize=8)
def mel_weights(audio: AudioInput) -> _Floats:
    """Return the weights of the spectrum's bins in each mel bin, [fft / 2 + 1, mel_bins]."""
    frequencies = np.linspace(0.0, audio.sample_rate_hz / 2, audio.fft_samples // 2 + 1)
    low, high = _to_mel(np.array([audio.low_hz, audio.high_hz]), audio)
    edges = np.linspace(low, high, audio.mel_bins + 2)
    if audio.mel_scale == "htk":
        places = _to_mel(frequencies, audio)
    else:
        places, edges = frequencies, _slaney_hz(edges)
    left, center, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (places[:, None] - left) / (center - left)
    falling = (right - places[:, None]) / (right - center)
    weights: _Floats = np.maximum(0.0, np.minimum(rising, falling))
    if audio.mel_scale == "htk":
        weights[0] = 0.0  # TensorFlow leaves the constant part out
        return weights
    even: _Floats = weights * (2.0 / (right - left))
    return even


def _to_mel(hz: _Floats, audio: AudioInput) -> _Floats:
    if audio.mel_scale == "htk":
        mel: _Floats = 1127.0 * np.log1p(hz / 700.0)
    else:
        above = _KNEE_MEL + np.log(np.maximum(hz, _KNEE_HZ) / _KNEE_HZ) / _LOG_STEP
        mel = np.where(hz < _KNEE_HZ, hz / _HZ_PER_MEL, above)
    return mel


def _slaney_hz(mel: _Floats) -> _Floats:
    above = _KNEE_HZ * np.exp(_LOG_STEP * (mel - _KNEE_MEL))
    hz: _Floats = np.where(mel < _KNEE_MEL, mel * _HZ_PER_MEL, above)
    return hz


@lru_cache(maxsize=8)
def _cosines(bins: int, coefficients: int) -> _Floats:
    """Return the cosine transform's matrix, [bins, coefficients]."""
    angles = np.pi / bins * np.outer(np.arange(bins) + 0.5, np.arange(coefficients))
    transform: _Floats = 2.0 * np.cos(angles) / np.sqrt(2.0 * bins)
    return transform
