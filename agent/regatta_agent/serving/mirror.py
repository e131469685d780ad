"""The next version in the shadow of the one that serves: a sample of live requests goes to both; answers are compared.

While the agent leads `MODEL.shadow` to the next version's worker, one in ten of the requests that this worker has
answered, and never more than one at a time, is sent there from a thread of its own. Nobody sees what is answered there;
neither worker counts it. Answers are compared as clients get them. Left out are requests whose answers are no tensors
(processed, classification) or lie in shared memory, which belongs to one worker.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from regatta_agent.serving.engine import Engine, Finished
from regatta_agent.serving.events import Shadowed
from regatta_agent.serving.exchange import Request, Response
from regatta_agent.serving.inference import InferRequest
from regatta_agent.serving.spec import ServeSpec
from regatta_agent.serving.tensors import Array

if TYPE_CHECKING:  # loaded when there is a next version: a worker seldom calls another
    from regatta_agent.serving.caller import Caller

__all__ = ["Agreement", "Mirror"]

logger = logging.getLogger(__name__)

_ONE_IN = 10
_TIMEOUT_S = 10.0
_HEADER_LENGTH = b"inference-header-content-length"


class Agreement:
    """How the answers of two versions compare. Pure."""

    def __init__(self) -> None:
        self.requests = 0
        self.failed = 0  # of them, by the next version, or with tensors of other shapes
        self.classified = 0  # of them, both answers being one row of classes
        self.agreed = 0  # of those, with the same class
        self._signal = self._noise = 0.0

    def add(self, ours: Sequence[Array], theirs: Sequence[Array]) -> None:
        """Compare two answers, tensor by tensor in the models' order."""
        self.requests += 1
        if [array.shape for array in ours] != [array.shape for array in theirs]:
            self.failed += 1
        elif ours[0].size >= 2 and ours[0].shape[-1] == ours[0].size:
            self.classified += 1
            self.agreed += int(ours[0].argmax() == theirs[0].argmax())
        else:
            for one, other in zip(ours, theirs, strict=True):
                real = one.astype(np.float64)
                self._signal += float(np.square(real).sum())
                self._noise += float(np.square(real - other.astype(np.float64)).sum())

    def fail(self) -> None:
        """Count a request that the next version did not answer."""
        self.requests += 1
        self.failed += 1

    @property
    def snr_db(self) -> float | None:
        """10 · log10 of our answers' energy over that of the differences, of what is no class; None without either."""
        return 10 * math.log10(self._signal / self._noise) if self._signal and self._noise else None


class _Shadow(NamedTuple):
    """The next version's worker."""

    socket: str
    caller: Caller
    agreement: Agreement


class Mirror:
    """Sends a sample of requests to whom the link leads. Used on the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, spec: ServeSpec) -> None:
        self._spec = spec
        self._engine = Engine(loop, 1, name="mirror")
        self._started = False
        self._seen = 0
        self._shadow: _Shadow | None = None

    def follow(self) -> bool:
        """Look where the link leads now; return whether there is anybody to send to. To be called twice a second."""
        link = self._spec.shadow_path
        try:
            path = link.resolve() if link is not None and link.is_symlink() else None
        except OSError:
            path = None
        if path is None or path.name == self._spec.socket_path.name:
            path = None
        socket = path.name if path is not None else None
        if socket != (self._shadow.socket if self._shadow is not None else None) and self._engine.pending == 0:
            if self._shadow is not None:
                self._shadow.caller.close()
            self._shadow = None
            if path is not None:
                from regatta_agent.serving.caller import Caller, parse_target

                self._shadow = _Shadow(path.name, Caller(parse_target(str(path)), _TIMEOUT_S), Agreement())
                logger.info("event=mirroring socket=%s", path.name)
        return self._shadow is not None

    def see(self, request: Request, infer: InferRequest, response: Response) -> None:
        """Send an answered request to the next version too, when its turn has come and nothing is under way there."""
        self._seen += 1
        if self._shadow is None or self._seen % _ONE_IN or self._engine.pending or not _is_plain(request, infer):
            return
        if not self._started:
            self._started = True
            self._engine.start()
        self._engine.submit(
            partial(self._ask, self._shadow.caller, request, response), partial(self._compare, self._shadow.agreement)
        )

    def told(self) -> Shadowed | None:
        """Return how the answers have compared so far, or None when there are none."""
        if self._shadow is None or self._shadow.agreement.requests == 0:
            return None
        agreement = self._shadow.agreement
        return Shadowed(
            socket=self._shadow.socket,
            requests=agreement.requests,
            failed=agreement.failed,
            classified=agreement.classified,
            agreed=agreement.agreed,
            snr_db=agreement.snr_db,
        )

    def _ask(self, caller: Caller, request: Request, response: Response) -> tuple[list[Array], list[Array]]:
        """Return both answers; on the mirror's thread."""
        from regatta_agent.client.messages import checked, tensors_of
        from regatta_agent.serving.caller import Answer, Call

        length = request.headers.get(_HEADER_LENGTH)
        call = Call(
            "POST",
            f"/v2/models/{self._spec.model}/infer",
            request.body,
            header_length=None if length is None else int(length),
            mirrored=True,
        )
        theirs = tensors_of(checked(caller.exchange(call)))
        ours = tensors_of(Answer(response.status, dict(response.headers), memoryview(response.body)))
        return list(ours.values()), list(theirs.values())

    def _compare(self, agreement: Agreement, finished: Finished[tuple[list[Array], list[Array]]]) -> None:
        if finished.value is None:
            logger.info("event=shadow_failed error=%s", finished.error)
            agreement.fail()
        else:
            agreement.add(*finished.value)


def _is_plain(request: Request, infer: InferRequest) -> bool:
    """Return whether the request and its answer are tensors in their bodies."""
    if infer.processed or any(output.classes or output.region for output in infer.outputs):
        return False
    length = int(request.headers.get(_HEADER_LENGTH, b"%d" % len(request.body)))
    return b"shared_memory_region" not in bytes(request.body[:length])
