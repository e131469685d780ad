"""Accuracy from requests that somebody labels afterwards. Pure, with a bounded memory.

The worker remembers what it predicted for the last requests that carried an id. Feedback names an id and the right
label, or says whether the answer was correct. Each request counts once; saying it again changes nothing.
"""

from __future__ import annotations

from collections import OrderedDict

from regatta_protocol.errors import Rejected
from regatta_protocol.values import Accuracy

__all__ = ["Feedback"]

MEMORY = 4096  # requests; about 0.5 MB of ids


class Feedback:
    """Predictions by request id, and the score of the running window."""

    def __init__(self, memory: int = MEMORY) -> None:
        self._memory = memory
        self._predicted: OrderedDict[str, int | None] = OrderedDict()
        self._judged: OrderedDict[str, bool] = OrderedDict()
        self._correct = 0
        self._total = 0

    def remember(self, request_id: str, predicted: int | None) -> None:
        """Keep what was predicted; None when the model's answer is no class."""
        self._judged.pop(request_id, None)
        self._predicted[request_id] = predicted
        self._predicted.move_to_end(request_id)
        if len(self._predicted) > self._memory:
            self._predicted.popitem(last=False)

    def judge(self, request_id: str, *, label: int | None, correct: bool | None) -> bool:
        """Return whether that request was answered correctly, and count it.

        Raises:
            KeyError: when the id is not (or no longer) remembered.
            Rejected: when the model's answer is no class and so a label cannot be compared with it.
        """
        if request_id in self._judged:
            return self._judged[request_id]
        predicted = self._predicted[request_id]
        if correct is None:
            if predicted is None:
                raise Rejected("this model's answer is no class: give correct (true or false) instead of label")
            correct = predicted == label
        del self._predicted[request_id]
        self._judged[request_id] = correct
        if len(self._judged) > self._memory:
            self._judged.popitem(last=False)
        self._correct += correct
        self._total += 1
        return correct

    def take(self) -> Accuracy | None:
        """Return the score since the last call, or None when nothing was judged."""
        if self._total == 0:
            return None
        score = Accuracy(correct=self._correct, total=self._total)
        self._correct = self._total = 0
        return score
