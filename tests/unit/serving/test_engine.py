"""The engine works in order, within its bound, and survives whatever the work raises."""

from __future__ import annotations

import asyncio
import threading

from regatta_agent.serving.engine import Engine, Finished


def test_work_is_done_in_order_and_bounded() -> None:
    """The third piece is refused while two wait; results and errors come back on the loop."""

    async def scenario() -> list[Finished[int]]:
        loop, gate, finished = asyncio.get_running_loop(), threading.Event(), list[Finished[int]]()
        engine = Engine(loop, queue_length=2)
        both = loop.create_future()

        def fail() -> int:
            gate.wait(10)
            raise ValueError("a runtime may raise anything")

        def done(result: Finished[int]) -> None:
            finished.append(result)
            if len(finished) == 2:
                both.set_result(None)

        engine.start()
        accepted = [engine.submit(fail, done), engine.submit(lambda: 7, done), engine.submit(lambda: 8, done)]
        while engine.running_s() == 0.0:
            await asyncio.sleep(0)
        gate.set()
        await asyncio.wait_for(both, 10)

        assert accepted == [True, True, False]
        assert engine.pending == 0
        assert engine.stop(timeout_s=10)
        return finished

    first, second = asyncio.run(scenario())

    assert isinstance(first.error, ValueError)
    assert (second.value, second.error) == (7, None)
    assert first.began_ns <= first.ended_ns <= second.began_ns


def test_brief_work_is_done_at_once_one_piece_a_turn() -> None:
    """Once measured as brief, work runs on the loop's thread when nothing is queued; its company is queued."""

    async def scenario() -> tuple[list[int], list[int | None]]:
        loop = asyncio.get_running_loop()
        engine, finished, all_done = Engine(loop, 2, brief_ns=10**12), list[Finished[int]](), loop.create_future()

        def done(result: Finished[int]) -> None:
            finished.append(result)
            if len(finished) == 4:
                all_done.set_result(None)

        engine.start()
        engine.perform(threading.get_ident, done)  # unmeasured
        while engine.pending:
            await asyncio.sleep(0)
        accepted = [engine.perform(threading.get_ident, done) for _ in range(4)]
        at_once = len(finished)
        await asyncio.wait_for(all_done, 10)

        assert engine.stop(timeout_s=10)
        assert at_once == 2
        assert accepted == [True, True, True, False]
        return [threading.get_ident()], [result.value for result in finished]

    (loops_own,), threads = asyncio.run(scenario())

    assert [thread == loops_own for thread in threads] == [False, True, False, False]


def test_work_that_grows_slow_goes_to_the_thread_again() -> None:
    """A piece over the bound raises the mean, and the next one does not keep the loop."""

    async def scenario() -> list[int | None]:
        loop = asyncio.get_running_loop()
        engine, finished = Engine(loop, 2, brief_ns=10**6), list[Finished[int]]()
        engine.start()

        def slow() -> int:
            threading.Event().wait(0.02)
            return threading.get_ident()

        for work in (threading.get_ident, slow, threading.get_ident):
            engine.perform(work, finished.append)
            while engine.pending:
                await asyncio.sleep(0)
            await asyncio.sleep(0)  # a new turn of the loop

        assert engine.stop(timeout_s=10)
        return [result.value for result in finished]

    first, _slow, last = asyncio.run(scenario())

    assert first == last


def test_stuck_work_is_seen() -> None:
    """running_s grows while a piece of work hangs, and stop says that the thread has not ended."""

    async def scenario() -> None:
        gate = threading.Event()
        engine = Engine(asyncio.get_running_loop(), queue_length=1)
        engine.start()
        engine.submit(lambda: gate.wait(10), lambda _: None)
        while engine.running_s() < 0.01:
            await asyncio.sleep(0.001)

        assert not engine.stop(timeout_s=0.01)
        gate.set()

    asyncio.run(scenario())
