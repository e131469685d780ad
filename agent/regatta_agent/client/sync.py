"""The client for threads: blocking calls over one connection. One thread at a time may use a client."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

from regatta_agent.client.messages import Arrays, Item, Processed, Score
from regatta_agent.client.sharing import SharedRegion
from regatta_agent.client.steps import Pause, Steps, Walk
from regatta_agent.serving.caller import Caller, ClosedBeforeAnswer, parse_target
from regatta_agent.serving.tensors import Array

__all__ = ["Client"]

T = TypeVar("T")


class Client:
    """A connection to one served model, made when first needed and again when it was closed."""

    def __init__(
        self,
        target: str | Path,
        *,
        timeout_s: float = 30.0,
        retry_s: float = 5.0,
        shared_memory: bool = False,
        token: str | None = None,
        ca: str | Path | None = None,
    ) -> None:
        """Keep the target: a socket's path, `unix:PATH`, `http://HOST:PORT` or `https://HOST:PORT`.

        Args:
            target: where the worker listens.
            timeout_s: for connecting, and for each answer as a whole.
            retry_s: how long to try again when a connection is closed before its answer, as in a swap.
            shared_memory: the tensors of `infer` go through shared memory, where the device offers it (`shared_memory`
                of [serving]); it pays for inputs over some 150 KB, or many clients.
            token: what the device asks for over the network (`token_file` of [serving]).
            ca: a PEM file of who signs the device's certificate; None: those that this system trusts.

        Raises:
            Misuse: when the target is none of these, the path is too long for a socket, or the token would be sent in
                the clear.
        """
        place = parse_target(str(target), token=token, ca=None if ca is None else str(ca))
        self._caller = Caller(place, timeout_s)
        self._steps = Steps(lambda: self._caller.is_open, retry_s, SharedRegion() if shared_memory else None)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self._caller.close()
        self._steps.forget()

    def is_ready(self, model: str) -> bool:
        """Return whether the model can be asked now."""
        return self._run(self._steps.is_ready(model))

    def metadata(self, model: str) -> dict[str, Any]:
        """Return the model's metadata, as the protocol gives it.

        Raises:
            Rejected: when the worker serves another model.
            Retryable: when the socket is absent or closed.
        """
        return self._run(self._steps.metadata(model))

    def infer(self, model: str, arrays: Arrays, *, request_id: str | None = None) -> dict[str, Array]:
        """Return every output by its name.

        Args:
            model: the model's name.
            arrays: the inputs: one array, several in the model's order, or by name. Floating-point arrays are real
                values; an array that lacks only the leading 1 of the model's shape is given it.
            request_id: an id to give feedback with later.

        Raises:
            Rejected: when the worker refuses the request; the text is the worker's.
            ServerBusy: when its queue is full.
            Retryable: when the socket is absent or closed, or the model fails.
        """
        return self._run(self._steps.infer(model, arrays, request_id))

    def infer_stacked(self, model: str, arrays: Arrays, *, top: int = 0) -> dict[str, Array]:
        """Return every output of many samples, computed one after another by one request.

        Args:
            model: the model's name.
            arrays: as infer's, each with all samples along its first dimension, up to 1024.
            top: more than 0: of the first output, the greatest scores of each sample in place of the tensor, an object
                array [samples, top] of `score:index[:label]`.

        Raises:
            Rejected, ServerBusy, Retryable: as infer.
        """
        return self._run(self._steps.infer_stacked(model, arrays, top))

    def process(self, model: str, item: Item, *, top: int = 0, request_id: str | None = None) -> Processed:
        """Return what the model's manifest makes of a picture or a sound, prepared and read in the worker.

        Args:
            model: the model's name.
            item: a file's bytes (JPEG, PNG, …, WAV), pixels uint8 [h, w, c], or a sound int16 or float32 [n].
            top: how many classes or objects at most; 0: as the manifest says.
            request_id: an id to give feedback with later.

        Raises:
            Rejected, ServerBusy, Retryable: as infer.
        """
        return self._run(self._steps.process(model, item, top, request_id))

    def classify(self, model: str, item: Item | Arrays, *, top: int = 5, request_id: str | None = None) -> list[Score]:
        """Return the `top` greatest scores of a picture, a sound (as process) or the model's own inputs, best first.

        Raises:
            Rejected, ServerBusy, Retryable: as infer.
        """
        return self._run(self._steps.classify(model, item, top, request_id))

    def feedback(
        self, model: str, request_id: str, *, label: str | int | None = None, correct: bool | None = None
    ) -> bool:
        """Tell the right label of an answered request (or whether it was right); return whether it was right.

        Raises:
            Rejected: when the request is not remembered any more, or the label is unknown.
            Retryable: when the socket is absent or closed.
        """
        return self._run(self._steps.feedback(model, request_id, label, correct))

    def _run(self, walk: Walk[T]) -> T:
        try:
            step = next(walk)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = next(walk)
                    continue
                try:
                    answer = self._caller.exchange(step)
                except ClosedBeforeAnswer as err:
                    step = walk.throw(err)
                else:
                    step = walk.send(answer)
        except StopIteration as done:
            return cast(T, done.value)
