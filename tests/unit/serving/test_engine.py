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


def test_work_done_at_once_is_on_the_thread_that_calls() -> None:
    """Its result comes back as of submitted work, whatever it raises."""

    async def scenario() -> None:
        engine = Engine(asyncio.get_running_loop(), queue_length=1)
        here, failed = engine.perform(threading.get_ident), engine.perform(lambda: 1 / 0)

        assert (here.value, here.error) == (threading.get_ident(), None)
        assert isinstance(failed.error, ZeroDivisionError)
        assert here.began_ns <= here.ended_ns <= failed.began_ns
        assert engine.running_s() == 0.0

    asyncio.run(scenario())


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
