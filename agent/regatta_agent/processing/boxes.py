"""Boxes of a detector: SSD's default boxes, the boxes that offsets to them mean, and non-maximum suppression. Pure.

Boxes are float [n, 4] of top, left, bottom, right, in shares of the model's input.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from regatta_protocol.processing import SsdAnchors

__all__ = ["decode_offsets", "default_boxes", "suppress"]

_Floats = npt.NDArray[np.float64]


@lru_cache(maxsize=4)
def default_boxes(anchors: SsdAnchors) -> _Floats:
    """Return the default boxes as center y, center x, height, width, [n, 4] (Liu et al. 2016, section 2.2).

    The scale of feature map k of m is min + (max - min) · k / (m - 1); each place has a box of every aspect ratio,
    and one of ratio 1 at the geometric mean of its scale and the next. The order is TensorFlow's: maps, rows, columns.
    """
    count = len(anchors.grids)
    step = (anchors.max_scale - anchors.min_scale) / max(1, count - 1)
    scales = [anchors.min_scale + step * place for place in range(count)]
    parts = []
    for place, (rows, columns) in enumerate(anchors.grids):
        scale, following = scales[place], scales[place + 1] if place + 1 < count else 1.0
        if place == 0 and anchors.reduce_lowest:
            shapes = [(0.1, 1.0), (scale, 2.0), (scale, 0.5)]
        else:
            shapes = [(scale, ratio) for ratio in anchors.aspect_ratios] + [((scale * following) ** 0.5, 1.0)]
        sizes = np.array([(size / ratio**0.5, size * ratio**0.5) for size, ratio in shapes])
        y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
        centers = np.repeat(np.stack([y.ravel(), x.ravel()], axis=1), len(shapes), axis=0)
        parts.append(np.concatenate([centers, np.tile(sizes, (rows * columns, 1))], axis=1))
    return np.concatenate(parts)


def decode_offsets(offsets: _Floats, anchors: SsdAnchors) -> _Floats:
    """Return the boxes that offsets [n, 4] (y, x, height, width) to the default boxes mean."""
    base = default_boxes(anchors)
    scaled = offsets / np.array(anchors.box_scales)
    centers = scaled[:, :2] * base[:, 2:] + base[:, :2]
    halves = np.exp(np.minimum(scaled[:, 2:], 30.0)) * base[:, 2:] / 2
    return np.concatenate([centers - halves, centers + halves], axis=1)


def suppress(boxes: _Floats, scores: _Floats, max_overlap: float, limit: int) -> list[int]:
    """Return which boxes stay, best first: greedily, each unless it overlaps one that stays by more than the limit.

    Args:
        boxes: [n, 4].
        scores: [n].
        max_overlap: intersection over union, 0…1.
        limit: how many stay at most.
    """
    order = np.argsort(-scores, kind="stable")
    areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0), axis=1)
    kept: list[int] = []
    while order.size and len(kept) < limit:
        best, order = int(order[0]), order[1:]
        kept.append(best)
        low = np.maximum(boxes[order, :2], boxes[best, :2])
        high = np.minimum(boxes[order, 2:], boxes[best, 2:])
        shared = np.prod(np.maximum(high - low, 0.0), axis=1)
        union = areas[order] + areas[best] - shared
        overlap = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
        order = order[overlap <= max_overlap]
    return kept
