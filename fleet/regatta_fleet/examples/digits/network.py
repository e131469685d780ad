"""A small convolutional network in numpy: forward, backward and Adam, enough to train the digits in seconds.

    picture [n, 8, 8, 1] -> conv 3×3, 32, relu -> conv 3×3, 32, relu -> max pool 2 -> dense 64, relu -> dense 10

Convolutions are matrix products over unfolded patches (im2col), SAME padding, stride 1. All arrays are float32.
Parameters keep TFLite's layouts: convolutions [out, 3, 3, in], dense [out, in], biases [out].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Adam", "Floats", "gradients", "initial_parameters", "logits"]

Floats = npt.NDArray[np.float32]
Parameters = dict[str, Floats]

_SHAPES: dict[str, tuple[int, ...]] = {
    "conv1": (32, 3, 3, 1),
    "conv2": (32, 3, 3, 32),
    "dense1": (64, 4 * 4 * 32),
    "dense2": (10, 64),
}


def initial_parameters(seed: int) -> Parameters:
    """Return weights drawn by He et al. 2015 (normal, variance 2 / fan-in) and zero biases."""
    random = np.random.RandomState(seed)  # its stream is frozen, so every numpy starts from the same weights
    parameters: Parameters = {}
    for name, shape in _SHAPES.items():
        fan_in = int(np.prod(shape[1:]))
        parameters[f"{name}/weights"] = (random.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)
        parameters[f"{name}/bias"] = np.zeros(shape[0], np.float32)
    return parameters


@dataclass(frozen=True)
class _Trace:
    """What the forward pass leaves for the backward one."""

    patches1: Floats  # [n·64, 9]
    hidden1: Floats  # [n, 8, 8, 32] after relu
    patches2: Floats  # [n·64, 288]
    hidden2: Floats  # [n, 8, 8, 32] after relu
    pooled: Floats  # [n, 512]
    kept: Floats  # pooled after dropout
    hidden3: Floats  # [n, 64] after relu
    logits: Floats  # [n, 10]


def logits(parameters: Parameters, pictures: Floats) -> Floats:
    """Return the network's logits [n, 10]."""
    return _forward(parameters, pictures, None).logits


def gradients(parameters: Parameters, pictures: Floats, targets: Floats, dropout: Floats) -> tuple[float, Parameters]:
    """Return the mean cross-entropy and its gradient by every parameter.

    Args:
        pictures: [n, 8, 8, 1] in 0..1.
        targets: probabilities [n, 10].
        dropout: factors [n, 512] by which the pooled features are multiplied (inverted dropout).
    """
    trace = _forward(parameters, pictures, dropout)
    shifted = np.exp(trace.logits - trace.logits.max(1, keepdims=True))
    probabilities = shifted / shifted.sum(1, keepdims=True)
    loss = float(-(targets * np.log(probabilities + 1e-9)).sum(1).mean())
    result: Parameters = {}

    d_logits = (probabilities - targets) / np.float32(len(pictures))
    d_hidden3 = _dense_backward("dense2", parameters, result, trace.hidden3, d_logits) * (trace.hidden3 > 0)
    d_pooled = _dense_backward("dense1", parameters, result, trace.kept, d_hidden3) * dropout
    d_hidden2 = _unpool(d_pooled, trace.pooled, trace.hidden2) * (trace.hidden2 > 0)
    d_patches2 = _conv_backward("conv2", parameters, result, trace.patches2, d_hidden2)
    d_hidden1 = _fold(d_patches2, trace.hidden1.shape) * (trace.hidden1 > 0)
    _conv_backward("conv1", parameters, result, trace.patches1, d_hidden1)
    return loss, result


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1) with decoupled weight decay (Loshchilov & Hutter 2019) on weights."""

    def __init__(self, parameters: Parameters, *, decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self._first = {name: np.zeros_like(values) for name, values in parameters.items()}
        self._second = {name: np.zeros_like(values) for name, values in parameters.items()}
        self._step = 0

    def step(self, slopes: Parameters, rate: float) -> None:
        """Move every parameter against its slope, in place."""
        self._step += 1
        for name, slope in slopes.items():
            first, second = self._first[name], self._second[name]
            first += 0.1 * (slope - first)
            second += 0.001 * (slope * slope - second)
            mean = first / (1 - 0.9**self._step)
            spread = np.sqrt(second / (1 - 0.999**self._step)) + 1e-8
            if name.endswith("/weights"):
                self._parameters[name] *= np.float32(1 - rate * self._decay)
            self._parameters[name] -= np.float32(rate) * mean / spread


def _forward(parameters: Parameters, pictures: Floats, dropout: Floats | None) -> _Trace:
    patches1, hidden1 = _conv("conv1", parameters, pictures)
    patches2, hidden2 = _conv("conv2", parameters, hidden1)
    n = len(pictures)
    pooled = hidden2.reshape(n, 4, 2, 4, 2, 32).max((2, 4)).reshape(n, -1)
    kept = pooled if dropout is None else pooled * dropout
    hidden3 = np.maximum(kept @ parameters["dense1/weights"].T + parameters["dense1/bias"], 0)
    final = hidden3 @ parameters["dense2/weights"].T + parameters["dense2/bias"]
    return _Trace(patches1, hidden1, patches2, hidden2, pooled, kept, hidden3, final)


def _conv(name: str, parameters: Parameters, source: Floats) -> tuple[Floats, Floats]:
    """Return the unfolded patches [n·h·w, 9·in] and relu of the convolution [n, h, w, out]."""
    n, height, width, channels = source.shape
    weights = parameters[f"{name}/weights"]
    padded = np.pad(source, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = np.lib.stride_tricks.sliding_window_view(padded, 3, 1)
    windows = np.lib.stride_tricks.sliding_window_view(rows, 3, 2)  # [n, h, w, in, 3, 3]
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(n * height * width, 9 * channels)
    flat = patches @ weights.reshape(len(weights), -1).T + parameters[f"{name}/bias"]
    return patches, np.maximum(flat, 0).reshape(n, height, width, -1)


def _conv_backward(name: str, parameters: Parameters, result: Parameters, patches: Floats, d_output: Floats) -> Floats:
    """Note the slopes of a convolution's parameters; return those of its patches."""
    weights = parameters[f"{name}/weights"]
    flat = d_output.reshape(-1, len(weights))
    result[f"{name}/weights"] = (flat.T @ patches).reshape(weights.shape)
    result[f"{name}/bias"] = flat.sum(0)
    slopes: Floats = flat @ weights.reshape(len(weights), -1)
    return slopes


def _fold(d_patches: Floats, shape: tuple[int, ...]) -> Floats:
    """Return the slopes of the picture [n, h, w, c] from those of its 3 × 3 patches."""
    n, height, width, channels = shape
    parts = d_patches.reshape(n, height, width, 3, 3, channels)
    padded = np.zeros((n, height + 2, width + 2, channels), np.float32)
    for row in range(3):
        for column in range(3):
            padded[:, row : row + height, column : column + width] += parts[:, :, :, row, column]
    return padded[:, 1:-1, 1:-1]


def _dense_backward(name: str, parameters: Parameters, result: Parameters, source: Floats, d_output: Floats) -> Floats:
    """Note the slopes of a dense layer's parameters; return those of its input."""
    result[f"{name}/weights"] = d_output.T @ source
    result[f"{name}/bias"] = d_output.sum(0)
    slopes: Floats = d_output @ parameters[f"{name}/weights"]
    return slopes


def _unpool(d_pooled: Floats, pooled: Floats, hidden: Floats) -> Floats:
    """Return the slopes before 2 × 2 max pooling: each goes to the places that held the maximum."""
    n = len(hidden)
    windows = hidden.reshape(n, 4, 2, 4, 2, 32)
    winners = windows == pooled.reshape(n, 4, 1, 4, 1, 32)
    slopes: Floats = (winners * d_pooled.reshape(n, 4, 1, 4, 1, 32)).reshape(hidden.shape)
    return slopes
