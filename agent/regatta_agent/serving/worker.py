"""The serving process from its first line to its last: load, test, serve, drain.

It ends by itself when its standard input ends (the parent closed it or died) or on SIGTERM: it says
`Connection: close` with every answer, waits until nobody asks any more, tells its last window, and exits 0. Its own
socket is removed then; the symlink that clients use is its parent's.

Exit codes: 0 drained; otherwise the code of the error family that a `failed` event names.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar, cast

from regatta_agent.serving import giving_way
from regatta_agent.serving.caretaker import Caretaker
from regatta_agent.serving.companions import Companions
from regatta_agent.serving.engine import Engine, Finished
from regatta_agent.serving.events import Failed, Ready, WorkerEvent, family_of
from regatta_agent.serving.failover import Failover, Opened, Switch
from regatta_agent.serving.feedback import Feedback
from regatta_agent.serving.grpc import open_grpc
from regatta_agent.serving.http import HttpServer
from regatta_agent.serving.inferring import Inferences
from regatta_agent.serving.lane import Batches
from regatta_agent.serving.listening import Listeners
from regatta_agent.serving.mirror import Mirror
from regatta_agent.serving.placed import PlacedModel, open_placed
from regatta_agent.serving.power import PowerMeter
from regatta_agent.serving.registry import Registry
from regatta_agent.serving.rehearsal import rehearse
from regatta_agent.serving.seat import is_guarded
from regatta_agent.serving.service import Service
from regatta_agent.serving.shared_memory import Regions
from regatta_agent.serving.spec import MAX_SPEC_BYTES, ServeSpec
from regatta_agent.serving.window import Outcome, Placement, Tally, Timing
from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Misuse, RegattaError, Rejected, Retryable
from regatta_protocol.parent import die_with_parent
from regatta_protocol.plain import read_json, to_json
from regatta_runtimes.power.finder import open_sensor

if TYPE_CHECKING:
    from regatta_agent.serving.grpc.server import GrpcServers

__all__ = ["contain", "main"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
_Placed = tuple[PlacedModel, Failover, Opened]

_SWEEP_S = 0.5
_HANG_LOOK_S, _HANG_LOOKS = 0.05, 4
_DRAIN_POLL_S = 0.02
_BRIEF_NS = 1_000_000  # what the loop may be kept from other connections; wake-ups of a thread cost 0.03 ms
# After how long the loop must let go of the interpreter when the engine's thread asks for it, which it does after each
# inference, of tens of microseconds with small models. Python's 5 ms are longer than all that the loop does at once, so
# the engine would wait for it: 0.5 to 2 % of a batch job (`./run bench batch`).
_SWITCH_INTERVAL_S = 50e-6
_ENGINE_QUEUE = 16  # the lane has two pieces in hand, and the caretaker asks one thing at a time
_OTHER_FILES = 160  # pipes, listeners, runners, sensors, libraries, and 64 shared-memory regions
_EVENT_QUEUE = 64  # lines; a parent that does not read loses windows, not the serving
_LAST_WORDS_S = 2.0


class Hung(Retryable):
    """An inference went on beyond its limit; only the end of the process stops it."""


class Lost(Retryable):
    """The runner of what serves is gone, and there is no standby."""


class Reporter:
    """Writes events to standard output on a thread of its own, so that a full pipe never stops serving."""

    def __init__(self) -> None:
        self._queue: queue.Queue[bytes | None] = queue.Queue(_EVENT_QUEUE)
        self._thread = threading.Thread(target=self._write, name="events", daemon=True)
        self._thread.start()

    def tell(self, event: WorkerEvent) -> None:
        """Say `event`; it is dropped when the parent has not read for long."""
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(to_json(event) + b"\n")

    def close(self) -> None:
        """Wait a moment for what was said to be read."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=_LAST_WORDS_S)
        self._thread.join(_LAST_WORDS_S)

    def _write(self) -> None:
        while (line := self._queue.get()) is not None:
            try:
                while line:
                    line = line[os.write(1, line) :]
            except OSError:  # the parent is gone; standard input ends as well, and that drains us
                return


def contain() -> None:
    """Die with the parent, and leave no core dump: it would hold inputs, which may be private.

    SIGKILL and not SIGTERM: an orphan that hangs in a driver would keep the accelerator from the next worker.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    die_with_parent(os.getppid())


def _room_for(connections: int, listeners: int) -> int:
    """Return how many of so many connections each listener may have, after raising the limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections * listeners + _OTHER_FILES
    if hard != resource.RLIM_INFINITY and wanted > hard:
        logger.warning("event=fewer_connections wanted=%d open_files=%d", connections, hard)
        wanted = hard
    if soft != resource.RLIM_INFINITY and wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(1, (wanted - _OTHER_FILES) // listeners)


def _regions(spec: ServeSpec) -> Regions:
    """Return the shared-memory regions of the model, which its workers share: they lie beside their sockets."""
    return Regions(Registry(spec.socket_path.with_name(f"{spec.model}.regions")))


class Worker:
    """One run of the process."""

    def __init__(self, spec: ServeSpec, reporter: Reporter, started_ns: int) -> None:
        self._spec = spec
        self._reporter = reporter
        self._started_ns = started_ns
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._rng = Random()  # noqa: S311 - jitter, not secrets
        self._engine = Engine(self._loop, _ENGINE_QUEUE)
        self._tally = Tally(Placement(spec.model, spec.version, spec.candidate_id), start=time.time())
        self._feedback = Feedback()
        self._caretaker: Caretaker | None = None
        self._meter = PowerMeter(partial(open_sensor, spec.power), spec.race_power)
        self._regions = _regions(spec) if spec.shared_memory else None
        self._inferences = Inferences(self._loop, self._tally, self._feedback, spec.limits.queue_length, self._regions)
        self._companions = Companions(self._loop, spec, self._inferences, self._rng)
        self._mirror = Mirror(self._loop, spec)
        self._service = Service(
            self._inferences, self._tally, self._feedback, lambda: len(self._server.connections), self._regions
        )
        listeners = 1 + (spec.grpc_path is not None) + (spec.grpc_tcp is not None)  # each bounds its own connections
        limits = replace(spec.limits, connections=_room_for(spec.limits.connections, listeners))
        self._server = HttpServer(self._service.handle, limits, body_limit_bytes=MAX_SPEC_BYTES)
        self._grpc: GrpcServers | None = None

    async def run(self) -> None:
        """Serve until told to stop.

        Raises:
            RegattaError: when the model cannot be served.
        """
        self._watch_parent()
        listeners = Listeners(self._spec, self._server.connection)
        try:
            await listeners.start()
            await self._serve(listeners)
            await self._drain(listeners)
        finally:
            listeners.close()

    def _watch_parent(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop.set)

        def wait_for_eof() -> None:
            with contextlib.suppress(OSError):
                while os.read(0, 4096):
                    pass
            with contextlib.suppress(RuntimeError):  # the loop has ended already
                self._loop.call_soon_threadsafe(self._stop.set)

        threading.Thread(target=wait_for_eof, name="parent", daemon=True).start()

    async def _serve(self, listeners: Listeners) -> None:
        self._engine.start()
        loaded: asyncio.Future[Finished[_Placed]] = self._loop.create_future()
        self._engine.submit(lambda: open_placed(self._spec, self._switching, self._slow), loaded.set_result)
        finished = await self._until_loaded(loaded)
        if finished is None:
            return
        if finished.error is not None:
            raise finished.error
        assert finished.value is not None
        placed, failover, opened = finished.value
        limit = self._spec.limits.body_bytes or placed.body_limit_bytes()
        self._server.body_limit_bytes = limit
        if self._regions is not None:
            self._regions.limit_bytes = limit
        self._grpc = await open_grpc(self._spec, self._server, self._count_invalid)
        batches = Batches(placed.most_rows, self._spec.batch_delay_us * 1000) if placed.most_rows > 1 else None
        # A delegate on the processor does not mind which thread calls it; what is asked of a runner may take long.
        brief_ns = 0 if is_guarded(self._spec.candidate_id, self._spec.guarded) else _BRIEF_NS
        self._inferences.add(None, placed, self._engine, brief_ns=brief_ns, batches=batches)
        self._companions.start(failover.signature, placed.interface)
        self._meter.start()
        threading.Thread(target=self._watch_for_end, args=(failover,), name="watch", daemon=True).start()
        await rehearse(self._spec.socket_path, self._spec.model)
        self._tally.begin(self._tally.placement, time.time())
        giving_way.end()
        load_us = (finished.ended_ns - self._started_ns) / 1000
        grpc_address = None if self._grpc is None else self._grpc.tcp_address
        said = Ready(load_us=load_us, self_test=opened.self_test, tcp=listeners.tcp_address, grpc=grpc_address)
        self._reporter.tell(said)
        logger.info("event=ready model=%s version=%s load_us=%.0f", self._spec.model, self._spec.version, load_us)
        self._caretaker = Caretaker(self._spec, failover, self._on_engine, self._reporter.tell, self._rng)
        if opened.degraded is not None:
            begun = Switch(self._spec.candidate_id, failover.serving.id, opened.degraded, time.time(), opened.crashed)
            self._switched(begun)
        self._caretaker.start()
        await self._tick_until_stopped(listeners)

    async def _until_loaded(self, loaded: asyncio.Future[Finished[_Placed]]) -> Finished[_Placed] | None:
        """Return what came of loading, or None when told to stop before."""
        stopping = asyncio.ensure_future(self._stop.wait())
        limit_s = self._spec.limits.self_test_s
        either: set[asyncio.Future[Any]] = {loaded, stopping}
        await asyncio.wait(either, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if loaded.done():
            return loaded.result()
        if self._stop.is_set():
            return None
        raise Hung(f"{self._spec.candidate_id} was not loaded and tested after {limit_s:g} s")

    async def _tick_until_stopped(self, listeners: Listeners) -> None:
        window_ends = self._loop.time() + self._spec.window_s
        while not self._stop.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                wait_s = min(_SWEEP_S, max(0.0, window_ends - self._loop.time()))
                await asyncio.wait_for(self._stop.wait(), wait_s)
            self._server.sweep()
            self._companions.sweep()
            self._inferences.mirror = self._mirror if self._mirror.follow() else None
            await listeners.follow()
            if self._grpc is not None:
                await self._grpc.follow()
            if self._loop.time() >= window_ends:
                self._close_window()
                window_ends += self._spec.window_s

    def _count_invalid(self) -> None:
        self._tally.count(Outcome.INVALID, Timing(0))

    def _switching(self, switch: Switch) -> None:
        """Have the loop told of a change of places, before the request that it was made for is answered."""
        self._loop.call_soon_threadsafe(self._switched, switch)

    def _switched(self, switch: Switch) -> None:
        assert self._caretaker is not None
        log = logger.info if switch.reason is None else logger.warning
        log("event=switched placement=%s winner=%s reason=%s", switch.placement, switch.winner, switch.reason)
        if not self._tally.is_told:
            self._close_window(last=True)
        self._tally.place(switch.placement)
        self._service.degraded = switch.reason
        self._reporter.tell(self._caretaker.switched(switch))

    def _slow(self) -> None:
        if self._caretaker is not None:
            self._caretaker.slow()

    def _on_engine(self, work: Callable[[], T]) -> T:
        """Do `work` on the engine's thread, for the caretaker's; see OnEngine."""
        answer: queue.SimpleQueue[Finished[T] | None] = queue.SimpleQueue()

        def submit() -> None:
            if not self._engine.submit(work, answer.put):
                answer.put(None)

        self._loop.call_soon_threadsafe(submit)
        try:
            finished = answer.get(timeout=self._spec.limits.hang_s)
        except queue.Empty:
            finished = None
        if finished is None:
            raise Retryable("the engine is busy: it is asked again later")
        if finished.error is not None:
            raise finished.error
        return cast(T, finished.value)

    def _watch_for_end(self, failover: Failover) -> None:
        """End the process when an inference in it hangs, or nothing can serve in it any more.

        On a thread of its own, for the loop's may be what hangs. It must be found hanging several times in a row: a
        process that was stopped has not computed meanwhile.
        """
        limit_s, pause, found = self._spec.limits.hang_s, threading.Event(), 0
        while found < _HANG_LOOKS and failover.lost is None:
            pause.wait(min(_HANG_LOOK_S, limit_s))
            stuck = self._engine.running_s() > limit_s or failover.stuck_s(limit_s) > 0
            found = found + 1 if stuck else 0
        error: Retryable
        if failover.lost is not None:
            error = Lost(f"{failover.lost}, and there is no standby")
        else:
            error = Hung(f"an inference of {failover.serving.id} has not ended after {failover.hang_s(limit_s):g} s")
        self._spec.socket_path.unlink(missing_ok=True)
        os._exit(_fail(error, self._reporter))

    def _close_window(self, *, last: bool = False) -> None:
        tally, now = self._tally, time.time()
        power = self._meter.take(inferences=tally.requests - tally.errors)
        self._reporter.tell(tally.close(now, self._feedback.take(), power, last=last))
        shadowed = self._mirror.told()
        if shadowed is not None:
            self._reporter.tell(shadowed)

    async def _drain(self, listeners: Listeners) -> None:
        """Answer what is under way and what still comes, until it is quiet or the time is up."""
        limits, began = self._spec.limits, self._loop.time()
        self._server.draining = self._service.draining = True
        listeners.leave()
        grpc_left = None if self._grpc is None else asyncio.ensure_future(self._grpc.stop())
        while (elapsed := self._loop.time() - began) < limits.drain_s:
            quiet_s = time.monotonic() - self._server.last_request_at
            if self._server.busy == 0 and min(quiet_s, elapsed) >= limits.drain_quiet_s:
                break
            await asyncio.sleep(_DRAIN_POLL_S)
        listeners.stop()
        while self._inferences.pending and self._loop.time() - began < limits.drain_s + 1.0:
            await asyncio.sleep(_DRAIN_POLL_S)
        self._server.close_idle()
        await asyncio.sleep(0)
        if grpc_left is not None:
            await grpc_left
        self._close_window(last=True)
        giving_way.begin()  # nobody waits for what is left to do
        self._meter.stop()
        if self._caretaker is not None:
            self._caretaker.stop(timeout_s=1.0)
        self._companions.close(timeout_s=1.0)
        if self._engine.stop(timeout_s=1.0) and self._inferences.placed is not None:
            self._inferences.placed.close()
        logger.info("event=drained model=%s seconds=%.3f", self._spec.model, self._loop.time() - began)


async def _run(spec: ServeSpec, reporter: Reporter, started_ns: int) -> None:
    await Worker(spec, reporter, started_ns).run()


def main(arguments: list[str], started_ns: int) -> int:
    """Serve as the spec file says; return the exit code.

    Args:
        arguments: the path of the spec file.
        started_ns: time.perf_counter_ns at the process's first line, before the imports.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    contain()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    reporter = Reporter()
    try:
        if len(arguments) != 1:
            raise Misuse("usage: python -m regatta_agent.serving SPEC.json")
        spec = read_json(ServeSpec, read_bounded(Path(arguments[0]), MAX_SPEC_BYTES), MAX_SPEC_BYTES)
        asyncio.run(_run(spec, reporter, started_ns))
    except Exception as err:  # noqa: BLE001 - the top of the program; _fail logs it
        return _fail(err, reporter)
    reporter.close()
    return 0


def _fail(err: Exception, reporter: Reporter) -> int:
    """Return the exit code for `err`, after telling of it."""
    error = err if isinstance(err, RegattaError) else _as_family(err)
    logger.error("event=failed", exc_info=err)
    reporter.tell(Failed(reason=str(error), family=family_of(error)))
    reporter.close()
    return error.exit_code


def _as_family(err: Exception) -> RegattaError:
    if isinstance(err, FileNotFoundError):
        return Rejected(f"{err.filename} is not there")
    return Misuse(f"the serving worker failed: {type(err).__name__}: {err}")
