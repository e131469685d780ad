"""Receiving one blob in chunks: what to ask for, how much at once, and when to ask again. Pure.

The device drives: it sends a `Get`, chunks come back unordered, doubled, late or never, and it asks for the rest.
Two wishes pull at how many chunks may be on their way. Too few leave the link idle (a window of 1 gives 35-61 % of
it); too many stand in a queue before every command (wire.md). So the window follows the bandwidth-delay product:

- it starts at one chunk and doubles each round trip until the rate stops growing or a queue shows;
- then it grows by one each round trip while the smoothed round trip is within 75 ms of the shortest one, stays up to
  150 ms, and above that shrinks towards 1.25 x the product of rate and shortest round trip. A delay decides, as in
  LEDBAT (RFC 6817), and not the product alone: with jitter or loss the measured rate falls short, and a window that
  follows only it dwindles to one (tests/unit/transfer has such links);
- a round trip over the shortest one + 500 ms halves it, at most once a round trip;
- a timeout (two smoothed round trips + four deviations, RFC 6298, doubled with each timeout in a row) gives up what
  is on its way as lost, halves it too, and asks again.

Invariants: never asks for a chunk that is here or still expected; `bitmap` alone resumes; at most `MAX_FRUITLESS`
timeouts in a row without a chunk, then it is `stalled` and asks no more until `resume`. The digest of the whole is
checked by who stores the bytes, not here.
"""

from __future__ import annotations

from dataclasses import dataclass

from regatta_protocol.chunk import Chunk, chunk_count
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import Digest
from regatta_protocol.messages import Get

__all__ = ["MAX_FRUITLESS", "MAX_WINDOW", "Transfer", "empty_bitmap"]

MAX_FRUITLESS = 8  # about 5 min of silence with the time-outs below
MAX_WINDOW = 256  # chunks; 4 MiB of 16 KiB, enough for 100 Mbit/s and 300 ms
_MAX_RANGES = 256  # of Get
_FIRST_TIMEOUT_S = 5.0  # before the first round trip is known
_MIN_TIMEOUT_S = 0.5  # a busy server answers late; asking twice costs a whole chunk
_MAX_TIMEOUT_S = 60.0
_LATE_S = 0.2  # without a chunk, then none is on its way any more from before a cut connection
_GAIN = 1.25  # x bandwidth-delay product (wire.md)
_MAX_QUEUE_S = 0.5  # delay over the shortest round trip that says: the queue grows (wire.md)
_GROW_BELOW_S = 0.075  # queueing delay that still lets the window grow
_SHRINK_ABOVE_S = 0.15  # and that makes it shrink: what a command may wait behind chunks
_FLAT_ROUNDS = 2  # round trips without a better rate that end the doubling
_REORDER_GAP = 3  # later chunks that come first before one counts as lost, as TCP does (RFC 5681)


def empty_bitmap(size_bytes: int, chunk_bytes: int) -> bytes:
    """Return the bitmap of a blob of which nothing is here."""
    return bytes(-(-chunk_count(size_bytes, chunk_bytes) // 8))


@dataclass
class _Expected:
    """A chunk that was asked for and has not come."""

    asked_s: float
    arrived_then: int  # how many chunks had arrived, for the rate
    overtaken: int = 0  # chunks asked for later that came before it


class Transfer:
    """One blob on its way. Feed `on_chunk`, send what `next_get` says, until `complete` or `stalled`."""

    def __init__(
        self, transfer: int, digest: Digest, size_bytes: int, chunk_bytes: int, have: bytes | None = None
    ) -> None:
        """
        Args:
            transfer: number of this transfer on this device; chunks of other numbers are strangers.
            have: bitmap of what is here, bit i of byte i // 8 from the lowest; None for nothing.

        Raises:
            Rejected: when the bitmap is not of this many chunks.
        """
        self.transfer = transfer
        self.digest = digest
        self.size_bytes = size_bytes
        self.chunk_bytes = chunk_bytes
        self.count = chunk_count(size_bytes, chunk_bytes)
        self._have = bytearray(empty_bitmap(size_bytes, chunk_bytes) if have is None else have)
        if len(self._have) != -(-self.count // 8) or (self.count % 8 and self._have[-1] >> self.count % 8):
            raise Rejected(f"a bitmap of {len(self._have)} bytes is not of {self.count} chunks: start over")
        self._missing = self.count - sum(byte.bit_count() for byte in self._have)
        self._cursor = 0  # every chunk below is here or expected
        self._expected: dict[int, _Expected] = {}  # in the order of asking
        self._retried: set[int] = set()  # asked for more than once: their round trip is ambiguous (Karn)
        self._window = 1.0
        self._growing = True
        self._full_rate = 0.0  # best rate when the window last paid off by growing
        self._flat_rounds = 0
        self._rate = 0.0  # chunks per second in the last round trip
        self._shortest_s: float | None = None
        self._smoothed_s = 0.0
        self._deviation_s = 0.0
        self._cut_s = -1e9  # when the window was last halved
        self._round_ends = 0  # arrivals that end this round trip
        self._arrived = 0
        self._progress_s: float | None = None  # when the last chunk came, or the last Get went out
        self._fruitless = 0
        self._hold_until_s = float("-inf")

    @property
    def missing(self) -> int:
        """How many chunks are not here."""
        return self._missing

    @property
    def complete(self) -> bool:
        """Whether every chunk is here."""
        return self._missing == 0

    @property
    def stalled(self) -> bool:
        """Whether asking again has brought nothing too often."""
        return self._fruitless >= MAX_FRUITLESS

    @property
    def window(self) -> int:
        """How many chunks may be on their way at the moment."""
        return int(self._window)

    def bitmap(self) -> bytes:
        """Return what is here, as the constructor takes it."""
        return bytes(self._have)

    def await_late(self, now_s: float) -> None:
        """Ask for nothing yet: what was sent before the connection was cut may still come, and is not to come twice."""
        self._hold_until_s = now_s + _LATE_S

    def next_get(self, now_s: float) -> Get | None:
        """Return what to ask for now, or None when it is time to wait (until `wake_s`) or to end."""
        if now_s < self._hold_until_s:
            return None
        self._give_up_late(now_s)
        room = int(self._window) - len(self._expected)
        if self.stalled or self.complete or room <= 0:
            return None
        # A few at a time: a Get for each chunk would cost the server and the uplink as many messages.
        if self._expected and room < max(1, int(self._window) // 8):
            return None
        wanted = self._pick(room)
        if not wanted:
            return None
        for index in wanted:
            self._expected[index] = _Expected(now_s, self._arrived)
        if self._progress_s is None or len(self._expected) == len(wanted):
            self._progress_s = now_s
        return Get(
            transfer=self.transfer, digest=self.digest, chunk_bytes=self.chunk_bytes, ranges=tuple(_ranges(wanted))
        )

    def wake_s(self) -> float | None:
        """Return when `next_get` should be asked again even if no chunk comes; None when nothing is expected."""
        if not self._expected or self._progress_s is None:
            return None
        return self._progress_s + self._timeout_s()

    def on_chunk(self, now_s: float, chunk: Chunk) -> int | None:
        """Return the offset at which the payload belongs, or None when it is a stranger or here already.

        A chunk of the wrong length is a stranger: it was cut to other sizes than we asked for.
        """
        index = chunk.index
        if chunk.transfer != self.transfer or index >= self.count or len(chunk.payload) != self._length(index):
            return None
        expected = self._expected.pop(index, None)
        if self._has(index):
            return None
        self._have[index // 8] |= 1 << index % 8
        self._missing -= 1
        self._arrived += 1
        self._fruitless = 0
        self._progress_s = now_s
        if now_s < self._hold_until_s:
            self.await_late(now_s)
        if expected is not None:
            if index not in self._retried:
                self._measure(now_s, expected)
            self._notice_gaps(now_s, expected)
        return index * self.chunk_bytes

    def on_lost_connection(self) -> None:
        """Expect nothing that was asked for, and measure anew: QoS 0 ends with its connection, the next may differ."""
        self._forget_expected(list(self._expected))
        self._window, self._growing, self._full_rate, self._flat_rounds = 1.0, True, 0.0, 0
        self._shortest_s, self._progress_s = None, None

    def resume(self) -> None:
        """Try again after having stalled."""
        self._fruitless = 0
        self.on_lost_connection()

    def _has(self, index: int) -> bool:
        return bool(self._have[index // 8] >> index % 8 & 1)

    def _length(self, index: int) -> int:
        return min(self.chunk_bytes, self.size_bytes - index * self.chunk_bytes)

    def _pick(self, room: int) -> list[int]:
        """Return at most `room` chunks that are neither here nor expected, in at most _MAX_RANGES runs."""
        wanted: list[int] = []
        runs = 0
        index = self._cursor
        while index < self.count and len(wanted) < room:
            if not self._has(index) and index not in self._expected:
                runs += not wanted or wanted[-1] != index - 1
                if runs > _MAX_RANGES:
                    break
                wanted.append(index)
            index += 1
        self._cursor = index if len(wanted) < room or not wanted else wanted[-1] + 1
        return wanted

    def _measure(self, now_s: float, expected: _Expected) -> None:
        """Learn round trip and rate from a chunk that was asked for once, and move the window."""
        trip_s = max(now_s - expected.asked_s, 1e-6)
        if self._shortest_s is None:
            self._shortest_s, self._smoothed_s, self._deviation_s = trip_s, trip_s, trip_s / 2
        self._shortest_s = min(self._shortest_s, trip_s)
        self._deviation_s += (abs(trip_s - self._smoothed_s) - self._deviation_s) / 4
        self._smoothed_s += (trip_s - self._smoothed_s) / 8
        self._rate = (self._arrived - expected.arrived_then) / trip_s
        jitter_s = 2 * self._deviation_s  # delays that vary around their mean are no queue, which would be steady
        queued_s = max(0.0, self._smoothed_s - self._shortest_s - jitter_s)
        if trip_s > self._shortest_s + _MAX_QUEUE_S and queued_s > _SHRINK_ABOVE_S:
            self._halve(now_s)
        elif self._growing:
            self._growing = trip_s < self._shortest_s + _SHRINK_ABOVE_S
            self._window = min(self._window + 1, MAX_WINDOW)  # one more for each that came: doubles each round trip
        if self._arrived >= self._round_ends:
            self._end_round(queued_s)

    def _end_round(self, queued_s: float) -> None:
        """Once a round trip: stop doubling when it no longer pays; later keep the queue short and the link full."""
        self._round_ends = self._arrived + len(self._expected) + 1
        if self._growing:
            paid = self._rate >= _GAIN * self._full_rate
            self._flat_rounds = 0 if paid else self._flat_rounds + 1
            self._growing = self._flat_rounds < _FLAT_ROUNDS
            self._full_rate = max(self._full_rate, self._rate)
        elif queued_s < _GROW_BELOW_S:
            self._window = min(self._window + 1, MAX_WINDOW)
        elif queued_s > _SHRINK_ABOVE_S:
            aim = max(_GAIN * self._rate * (self._smoothed_s - queued_s), 1.0)
            self._window = min(self._window, max(aim, self._window * 0.75))

    def _halve(self, now_s: float) -> None:
        self._growing = False
        if now_s - self._cut_s > self._smoothed_s:
            self._cut_s = now_s
            self._window = max(1.0, self._window / 2)

    def _notice_gaps(self, now_s: float, arrived: _Expected) -> None:
        """Count as lost what was asked for well before a chunk that has come, without waiting for the timeout."""
        lost = []
        for index, expected in self._expected.items():
            if expected.asked_s >= arrived.asked_s:
                break
            expected.overtaken += 1
            if expected.overtaken >= _REORDER_GAP and now_s - expected.asked_s > self._patience_s():
                lost.append(index)
        self._forget_expected(lost)

    def _patience_s(self) -> float:
        """How long a chunk may take while others overtake it."""
        return max(1.5 * self._smoothed_s + 4 * self._deviation_s, 0.05)

    def _timeout_s(self) -> float:
        first = _FIRST_TIMEOUT_S if self._shortest_s is None else 2 * self._smoothed_s + 4 * self._deviation_s
        return min(max(first, _MIN_TIMEOUT_S) * 2.0 ** min(self._fruitless, 10), _MAX_TIMEOUT_S)

    def _give_up_late(self, now_s: float) -> None:
        """When nothing has come for a whole timeout, count all that is expected as lost."""
        wake_s = self.wake_s()
        if wake_s is None or now_s < wake_s or self.stalled:
            return
        self._fruitless += 1
        self._halve(now_s)
        self._forget_expected(list(self._expected))
        self._progress_s = now_s

    def _forget_expected(self, indices: list[int]) -> None:
        for index in indices:
            del self._expected[index]
            self._retried.add(index)
            self._cursor = min(self._cursor, index)


def _ranges(indices: list[int]) -> list[tuple[int, int]]:
    """Return ascending indices as [start, stop) runs."""
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and runs[-1][1] == index:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return runs
