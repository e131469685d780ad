"""The client for asyncio: many requests at a time over a few connections, which are opened when needed and kept."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

from regatta_agent.client.messages import Arrays, Item, Processed, Score
from regatta_agent.client.sharing import SharedRegion
from regatta_agent.client.steps import Pause, Steps, Walk
from regatta_agent.serving.caller import (
    ADVICE,
    MAX_HEADER_BYTES,
    Answer,
    Call,
    ClosedBeforeAnswer,
    Target,
    body_length,
    not_connected,
    parse_head,
    parse_target,
)
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Misuse, Retryable, TooLarge

__all__ = ["AsyncClient"]

T = TypeVar("T")


class AsyncClient:
    """As `Client`, with the same methods to be awaited. Any number of tasks of one loop may use it.

    At most `connections` requests are under way; others wait for a connection. A task that is cancelled closes the
    connection that it waits on.
    """

    def __init__(
        self,
        target: str | Path,
        *,
        connections: int = 4,
        timeout_s: float = 30.0,
        retry_s: float = 5.0,
        shared_memory: bool = False,
        token: str | None = None,
        ca: str | Path | None = None,
    ) -> None:
        """Keep the target; see Client.

        Raises:
            Misuse: when the target is none, or connections is less than 1.
        """
        if connections < 1:
            raise Misuse(f"connections is {connections}: 1 or more are needed")
        place = parse_target(str(target), token=token, ca=None if ca is None else str(ca))
        self._lanes = [_Lane(place, timeout_s, retry_s, shared_memory=shared_memory) for _ in range(connections)]
        self._free: asyncio.LifoQueue[_Lane] = asyncio.LifoQueue()
        for lane in self._lanes:
            self._free.put_nowait(lane)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; the next call opens another."""
        for lane in self._lanes:
            lane.close()

    async def is_ready(self, model: str) -> bool:
        """Return whether the model can be asked now."""
        return await self._run(lambda steps: steps.is_ready(model))

    async def metadata(self, model: str) -> dict[str, Any]:
        """Return the model's metadata; raises as Client.metadata."""
        return await self._run(lambda steps: steps.metadata(model))

    async def infer(self, model: str, arrays: Arrays, *, request_id: str | None = None) -> dict[str, Array]:
        """Return every output by its name; takes and raises as Client.infer."""
        return await self._run(lambda steps: steps.infer(model, arrays, request_id))

    async def infer_stacked(self, model: str, arrays: Arrays, *, top: int = 0) -> dict[str, Array]:
        """Return every output of many samples; takes and raises as Client.infer_stacked."""
        return await self._run(lambda steps: steps.infer_stacked(model, arrays, top))

    async def process(self, model: str, item: Item, *, top: int = 0, request_id: str | None = None) -> Processed:
        """Return what the model's manifest makes of a picture or a sound; takes and raises as Client.process."""
        return await self._run(lambda steps: steps.process(model, item, top, request_id))

    async def classify(
        self, model: str, item: Item | Arrays, *, top: int = 5, request_id: str | None = None
    ) -> list[Score]:
        """Return the `top` greatest scores; takes and raises as Client.classify."""
        return await self._run(lambda steps: steps.classify(model, item, top, request_id))

    async def feedback(
        self, model: str, request_id: str, *, label: str | int | None = None, correct: bool | None = None
    ) -> bool:
        """Return whether an answered request was right; takes and raises as Client.feedback."""
        return await self._run(lambda steps: steps.feedback(model, request_id, label, correct))

    async def _run(self, begin: Callable[[Steps], Walk[T]]) -> T:
        lane = await self._free.get()
        try:
            return await lane.run(begin(lane.steps))
        finally:
            self._free.put_nowait(lane)


class _Lane:
    """One connection with its steps. Used by one task at a time."""

    def __init__(self, target: Target, timeout_s: float, retry_s: float, *, shared_memory: bool) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        region = SharedRegion() if shared_memory else None
        self.steps = Steps(lambda: self._streams is not None, retry_s, region)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
        self.steps.forget()

    async def run(self, walk: Walk[T]) -> T:
        try:
            step = next(walk)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = next(walk)
                    continue
                try:
                    answer = await self._exchange(step)
                except ClosedBeforeAnswer as err:
                    step = walk.throw(err)
                else:
                    step = walk.send(answer)
        except StopIteration as done:
            return cast(T, done.value)

    async def _exchange(self, call: Call) -> Answer:
        """Return the answer, within the timeout; raises as Caller.exchange."""
        try:
            answer = await asyncio.wait_for(self._ask(call), self._timeout_s)
        except asyncio.TimeoutError as err:
            self._drop()
            raise Retryable(f"{self._target.text} did not answer within {self._timeout_s:g} s: {ADVICE}") from err
        except BaseException:
            self._drop()  # what is left on it belongs to nobody
            raise
        if answer.headers.get(b"connection", b"").lower() == b"close":
            self._drop()
        return answer

    def _drop(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _ask(self, call: Call) -> Answer:
        reader, writer = await self._connected()
        # A worker that refuses early (413) answers and stops reading, so the answer is looked for all the same.
        with contextlib.suppress(ConnectionError):
            writer.writelines([call.head(self._target), call.body, *call.tail])
            await writer.drain()
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            status, headers = parse_head(head[:-4])
            body = await reader.readexactly(body_length(headers))
        except asyncio.LimitOverrunError as err:
            raise TooLarge(f"the answer of {self._target.text} has headers over {MAX_HEADER_BYTES} bytes") from err
        except asyncio.IncompleteReadError as err:
            where = "within" if err.partial else "before"
            raise ClosedBeforeAnswer(f"{self._target.text} closed the connection {where} an answer") from err
        except ConnectionError as err:
            raise ClosedBeforeAnswer(f"{self._target.text} closed the connection before an answer") from err
        return Answer(status, headers, memoryview(body))

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is not None:
            return self._streams
        target = self._target
        try:
            if target.path is None:
                self._streams = await asyncio.open_connection(
                    target.host, target.port, limit=MAX_HEADER_BYTES, ssl=target.tls
                )
            else:
                self._streams = await asyncio.open_unix_connection(target.path, limit=MAX_HEADER_BYTES)
        except OSError as err:
            raise not_connected(target, err) from err
        return self._streams
