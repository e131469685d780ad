"""Other placements that serve beside the winner, where the policy asks for several (`pool_size`).

Each runs in a runner, so that whatever it does costs one request a moment and never the worker, and has a lane of its
own. What a companion cannot compute goes to the winner's lane, and from there on by failover; one whose runner is gone,
or that failed several times in a row, takes no more requests from this worker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from regatta_agent.serving.engine import Engine, Finished
from regatta_agent.serving.inferring import Inferences
from regatta_agent.serving.interface import ModelInterface
from regatta_agent.serving.placed import PlacedModel
from regatta_agent.serving.seat import Seat, Signature, open_seat
from regatta_agent.serving.spec import Contender, ServeSpec
from regatta_agent.serving.tensors import Array
from regatta_protocol.manifest import TensorSpec

__all__ = ["Companions"]

logger = logging.getLogger(__name__)

_ENGINE_QUEUE = 4


class _Seated:
    """A seat as a session that can compute several requests together."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._seat.signature.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._seat.signature.outputs

    @property
    def delegated_nodes(self) -> int:
        return self._seat.session.delegated_nodes

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        return self._seat.run(inputs)

    def run_together(self, inputs: Sequence[Array], rows: int) -> list[Array]:
        return self._seat.run_rows(inputs, rows)

    def close(self) -> None:
        self._seat.close()


class Companions:
    """The companions of one worker. Used on the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, spec: ServeSpec, inferences: Inferences) -> None:
        self._loop = loop
        self._spec = spec
        self._inferences = inferences
        self._engines: list[Engine] = []
        self._seats: dict[str, Seat] = {}

    def open(self, signature: Signature, interface: ModelInterface) -> None:
        """Begin to open each; it serves when it is open and did well on the golden samples."""
        for contender in self._spec.companions:
            engine = Engine(self._loop, _ENGINE_QUEUE, name="companion")
            engine.start()
            self._engines.append(engine)
            engine.submit(
                partial(self._opened, contender, signature), partial(self._serve, contender, interface, engine)
            )

    def close(self, timeout_s: float) -> None:
        """End their runners, after the work at hand when that is soon over."""
        ended = [engine.stop(timeout_s) for engine in self._engines]
        if all(ended):
            for seat in self._seats.values():
                seat.close()

    def sweep(self) -> None:
        """Let go of those whose runner has ended. To be called about twice a second."""
        for candidate, seat in list(self._seats.items()):
            if not seat.is_alive():
                del self._seats[candidate]
                self._inferences.dismiss(candidate, "its runner has ended")

    def _opened(self, contender: Contender, signature: Signature) -> Seat:
        return open_seat(contender, self._spec, signature, guarded=True)[0]

    def _serve(self, contender: Contender, interface: ModelInterface, engine: Engine, finished: Finished[Seat]) -> None:
        seat = finished.value
        if seat is None:
            logger.warning("event=no_companion candidate=%s error=%s", contender.candidate_id, finished.error)
            return
        self._seats[contender.candidate_id] = seat
        latency = contender.latency
        expected_ns = None if latency is None else int(latency.p50_us * 1000)
        self._inferences.add(contender.candidate_id, PlacedModel(_Seated(seat), interface), engine, expected_ns)
        logger.info("event=companion candidate=%s", contender.candidate_id)
