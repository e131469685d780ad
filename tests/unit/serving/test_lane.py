"""The lane: priorities, deadlines and batches hold while the engine computes, and every request ends once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from regatta_agent.serving.engine import Engine
from regatta_agent.serving.lane import Batches, Expired, Lane
from regatta_agent.serving.waiting import DEFAULT_PRIORITY


@dataclass(frozen=True)
class _Request:
    name: str
    priority: int = DEFAULT_PRIORITY
    deadline_ns: int | None = None
    brief: bool = False


@dataclass
class _Rig:
    """A lane whose engine computes only when the gate is opened."""

    lane: Lane[_Request, str]
    gate: threading.Event
    computed: list[list[str]]
    ended: dict[str, str | Exception] = field(default_factory=dict)

    async def until_ended(self, count: int) -> None:
        while len(self.ended) < count:
            await asyncio.sleep(0.001)


def _run(scenario: Callable[[_Rig], object], batches: Batches | None = None) -> _Rig:
    """Run a coroutine function on a fresh rig, and end its engine."""

    async def main() -> _Rig:
        loop = asyncio.get_running_loop()
        engine, gate, computed = Engine(loop, 8), threading.Event(), list[list[str]]()

        def compute(requests: Sequence[_Request]) -> list[str | Exception]:
            gate.wait(10)
            computed.append([one.name for one in requests])
            return [ValueError(one.name) if one.name.startswith("bad") else one.name.upper() for one in requests]

        def finish(request: _Request, result: str | Exception, _began_ns: int) -> None:
            assert request.name not in rig.ended
            rig.ended[request.name] = result

        rig = _Rig(Lane(loop, engine, compute, finish), gate, computed)
        rig.lane.batches = batches
        engine.start()
        try:
            await asyncio.wait_for(scenario(rig), 10)  # type: ignore[arg-type]
        finally:
            gate.set()
            assert engine.stop(timeout_s=10)
        return rig

    return asyncio.run(main())


def test_the_more_urgent_overtakes_what_waits() -> None:
    """Two pieces are in hand; of the others the best priority is next, and equals keep their order."""

    async def scenario(rig: _Rig) -> None:
        for name, priority in (("a", 5), ("b", 5), ("c", 10), ("d", 5), ("e", 1), ("f", 5)):
            rig.lane.put(_Request(name, priority))
        assert rig.lane.pending == 6
        rig.gate.set()
        await rig.until_ended(6)

    rig = _run(scenario)

    assert rig.computed == [["a"], ["b"], ["e"], ["d"], ["f"], ["c"]]
    assert rig.lane.pending == 0


def test_what_is_late_is_not_computed() -> None:
    """It ends as expired when its time is up, while the engine still computes what came before."""

    async def scenario(rig: _Rig) -> None:
        soon_ns = time.perf_counter_ns() + 5_000_000
        for name in ("a", "b"):
            rig.lane.put(_Request(name))
        rig.lane.put(_Request("late", deadline_ns=soon_ns))
        rig.lane.put(_Request("timely", deadline_ns=soon_ns + 60 * 10**9))
        await rig.until_ended(1)
        assert list(rig.ended) == ["late"]
        rig.gate.set()
        await rig.until_ended(4)

    rig = _run(scenario)

    assert isinstance(rig.ended["late"], Expired)
    assert rig.computed == [["a"], ["b"], ["timely"]]


def test_what_grows_late_in_hand_is_not_computed() -> None:
    """The deadline is looked at again when the engine takes it up."""

    async def scenario(rig: _Rig) -> None:
        rig.lane.put(_Request("a"))
        rig.lane.put(_Request("late", deadline_ns=time.perf_counter_ns() + 1_000_000))
        await asyncio.sleep(0.002)
        rig.gate.set()
        await rig.until_ended(2)

    rig = _run(scenario)

    assert isinstance(rig.ended["late"], Expired)
    assert rig.computed == [["a"]]


def test_what_gathers_meanwhile_is_one_batch() -> None:
    """The first goes alone; those that come while it runs go together, as many as may; one that fails fails alone."""

    async def scenario(rig: _Rig) -> None:
        for name in ("a", "b", "bad", "c", "d", "e", "f"):
            rig.lane.put(_Request(name))
        rig.gate.set()
        await rig.until_ended(7)

    rig = _run(scenario, Batches(most=4))

    assert rig.computed == [["a"], ["b", "bad", "c", "d"], ["e", "f"]]
    assert isinstance(rig.ended.pop("bad"), ValueError)
    assert rig.ended == {name: name.upper() for name in "abcdef"}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_delay_gathers_company_and_ends(count: int) -> None:
    """With a delay requests wait for a whole batch, and no longer than it when none comes."""

    async def scenario(rig: _Rig) -> None:
        rig.gate.set()
        for number in range(count):
            rig.lane.put(_Request(str(number)))
        await rig.until_ended(count)

    rig = _run(scenario, Batches(most=2, delay_ns=20_000_000))

    assert rig.computed == [["0", "1"], ["2"]][: (count + 1) // 2] if count != 1 else [["0"]]


def test_retry_after_is_what_the_queue_takes() -> None:
    """Pending requests times the measured mean, in whole seconds and at least one."""

    async def scenario(rig: _Rig) -> None:
        assert rig.lane.retry_after_s() == 1
        rig.lane.put(_Request("slow"))
        await asyncio.sleep(0.3)  # which it takes: the mean is 37 ms or more then
        rig.gate.set()
        await rig.until_ended(1)
        rig.gate.clear()
        for number in range(40):
            rig.lane.put(_Request(str(number)))
        assert rig.lane.retry_after_s() >= 2
        assert rig.lane.delay_ns() > rig.lane.delay_ns(0) > 40 * 37e6
        rig.gate.set()
        await rig.until_ended(41)

    _run(scenario)
