"""Answers of two versions compared: classes by the greatest score, the rest by the energy of the differences."""

from __future__ import annotations

import numpy as np
import pytest

from regatta_agent.serving.mirror import Agreement


def test_rows_of_classes_agree_by_the_greatest_score() -> None:
    """Also int8 and with other scores; each pair counts once."""
    agreement = Agreement()
    row = np.array([[1, 9, 3]], np.int8)
    for theirs in ([[0, 4, 2]], [[5, 4, 2]], [[0, 1, 0]]):
        agreement.add([row], [np.array(theirs, np.int8)])

    assert (agreement.requests, agreement.classified, agreement.agreed, agreement.failed) == (3, 3, 2, 0)
    assert agreement.snr_db is None


def test_other_tensors_are_compared_by_their_snr() -> None:
    """10 · log10 of the energy of the answers over that of their differences, over all requests and outputs."""
    agreement = Agreement()
    ones = np.ones((2, 50), np.float32)
    agreement.add([ones, np.zeros((1, 1), np.uint8)], [ones + np.float32(0.125), np.zeros((1, 1), np.uint8)])
    agreement.add([ones], [ones])

    assert agreement.snr_db == pytest.approx(10 * np.log10(200 / (100 * 0.125**2)))
    assert (agreement.requests, agreement.classified) == (2, 0)


def test_what_cannot_be_compared_has_failed() -> None:
    """Tensors of another shape, or none at all, are no agreement."""
    agreement = Agreement()
    agreement.add([np.zeros((1, 3))], [np.zeros((1, 4))])
    agreement.fail()

    assert (agreement.requests, agreement.failed, agreement.snr_db) == (2, 2, None)
