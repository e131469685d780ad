"""Clients that ask a served model without a pause, and remember when each answer came."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

from regatta_agent.client import Client
from regatta_agent.serving.tensors import Array

__all__ = ["Load"]


class Load:
    """Threads with a client each."""

    def __init__(
        self, target: Path, model: str, sample: Array, clients: int = 3, expected: Array | None = None
    ) -> None:
        self._target = target
        self._model = model
        self._sample = sample
        self._expected = expected
        self._stop = threading.Event()
        self.answered_at: list[float] = []  # time.monotonic
        self.errors: list[BaseException] = []
        self.wrong = 0
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]

    def start(self) -> None:
        """Begin to ask."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Ask no more, and wait for the last answers."""
        self._stop.set()
        for thread in self._threads:
            thread.join(30.0)

    def longest_gap_s(self, since: float = 0.0) -> float:
        """Return the longest time without an answer that ended after `since`."""
        return max(
            (after - before for before, after in pairwise(sorted(self.answered_at)) if after > since), default=0.0
        )

    def _ask(self) -> None:
        try:
            with Client(self._target, timeout_s=20.0) as client:
                while not self._stop.is_set():
                    (output,) = client.infer(self._model, self._sample).values()
                    self.wrong += self._expected is not None and not np.array_equal(output, self._expected)
                    self.answered_at.append(time.monotonic())
        except BaseException as err:  # noqa: BLE001 - whoever reads `errors` judges
            self.errors.append(err)
