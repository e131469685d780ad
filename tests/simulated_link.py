"""A link between a device that receives a blob and a server that sends it, in simulated time.

The way down has a bandwidth with a queue before it, a delay, and faults by a seeded generator; the way up has a
delay and loses requests. It runs the device's `Transfer` and the fleet's `Sender`, joined by real bytes.
"""

from __future__ import annotations

import heapq
import io
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from regatta_agent.core.transfer import Transfer
from regatta_fleet.devices.sender import Sender
from regatta_protocol.chunk import unpack_chunk
from regatta_protocol.codec import decode, encode
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import DeviceId
from regatta_protocol.messages import Get

DEVICE = DeviceId("dev-1")


@dataclass(frozen=True)
class Link:
    bytes_per_s: float = 1e6
    trip_s: float = 0.05  # both ways together, without queueing
    jitter_s: float = 0.0
    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0  # comes one to three round trips late
    truncate: float = 0.0
    drop_up: float = 0.0


@dataclass
class Outcome:
    """What a run did."""

    took_s: float = 0.0
    asked: int = 0  # chunks, counted each time
    gets: int = 0
    lost: int = 0  # chunks dropped or damaged on the way down
    lost_up: int = 0  # chunks asked for in requests that were dropped
    arrived: int = 0
    most_queued_s: float = 0.0
    peak_window: int = 0
    violations: list[str] = field(default_factory=list)

    def extra(self, needed: int) -> float:
        """Share of chunks asked for beyond those needed and those lost."""
        return (self.asked - self.lost - self.lost_up - needed) / needed


def run_link(
    transfer: Transfer,
    data: bytes,
    link: Link,
    seed: int,
    *,
    until: Callable[[Transfer], bool] = lambda _: False,
    received: bytearray | None = None,
    limit_s: float = 3600.0,
) -> Outcome:
    """Run until complete, stalled, `until`, or the limit of simulated time; `received` gets the bytes."""
    chance = random.Random(seed)
    sender = Sender(lambda _: io.BytesIO(data))
    outcome = Outcome()
    order = itertools.count()
    todo: list[tuple[float, int, str, bytes]] = []  # (when, tie breaker, "up" or "down", payload)
    now_s = free_s = 0.0

    def ask() -> None:
        while (get := transfer.next_get(now_s)) is not None:
            indices = [index for start, stop in get.ranges for index in range(start, stop)]
            bits = transfer.bitmap()
            outcome.violations += [f"{i} is here" for i in indices if bits[i // 8] >> i % 8 & 1]
            outcome.asked += len(indices)
            outcome.gets += 1
            outcome.peak_window = max(outcome.peak_window, transfer.window)
            if chance.random() < link.drop_up:
                outcome.lost_up += len(indices)
            else:
                heapq.heappush(todo, (now_s + link.trip_s / 2, next(order), "up", encode(get)))

    def send_down(payload: bytes) -> None:
        nonlocal free_s
        free_s = max(free_s, now_s) + len(payload) / link.bytes_per_s
        outcome.most_queued_s = max(outcome.most_queued_s, free_s - now_s)
        if chance.random() < link.drop:
            outcome.lost += 1
            return
        if chance.random() < link.truncate:
            outcome.lost += 1
            payload = payload[: chance.randrange(len(payload))]
        arrives_s = free_s + link.trip_s / 2 + chance.uniform(0, link.jitter_s)
        if chance.random() < link.reorder:
            arrives_s += chance.uniform(1, 3) * link.trip_s
        for _ in range(2 if chance.random() < link.duplicate else 1):
            heapq.heappush(todo, (arrives_s, next(order), "down", payload))

    ask()
    while not (transfer.complete or transfer.stalled or until(transfer)) and now_s < limit_s:
        wake_s = transfer.wake_s()
        if todo and (wake_s is None or todo[0][0] <= wake_s):
            now_s, _, way, payload = heapq.heappop(todo)
            if way == "up":
                for message in sender.answer(DEVICE, decode(Get, payload)):
                    send_down(message.payload)
            else:
                outcome.arrived += 1
                try:
                    chunk = unpack_chunk(payload)
                except Rejected:
                    continue
                offset = transfer.on_chunk(now_s, chunk)
                if offset is not None and received is not None:
                    received[offset : offset + len(chunk.payload)] = chunk.payload
        else:
            assert wake_s is not None, "nothing is under way and nothing is waited for"
            now_s = max(now_s, wake_s)
        ask()
    outcome.took_s = now_s
    return outcome
