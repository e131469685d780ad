"""The lane: priorities, deadlines and batches hold while the engine computes, and every request ends once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field

import pytest

from regatta_agent.serving import lane
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


def test_what_was_refused_says_nothing_of_how_long_the_next_takes() -> None:
    """Else a few malformed requests would have a slow model taken for a brief one, and computed on the loop."""

    async def scenario(rig: _Rig) -> None:
        rig.gate.set()
        before_ns = rig.lane.delay_ns()
        for number in range(8):
            rig.lane.put(_Request(f"bad-{number}"))
        await rig.until_ended(8)
        assert rig.lane.delay_ns() == before_ns

    _run(scenario)


def test_what_was_measured_long_ago_is_forgiven_until_it_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a companion that had one bad moment would never be asked again; a quick answer is believed at once."""

    async def scenario(rig: _Rig) -> None:
        rig.lane.put(_Request("slow"))
        await asyncio.sleep(0.2)  # which it takes: the mean is 25 ms or more then
        rig.gate.set()
        await rig.until_ended(1)
        now_ns, slow_ns = time.perf_counter_ns(), rig.lane.delay_ns()
        assert rig.lane.hoped_ns(now_ns) > 0.9 * slow_ns
        assert rig.lane.hoped_ns(now_ns + 2 * lane._FORGIVES_NS) == pytest.approx(slow_ns / 4, rel=0.2)
        rig.gate.clear()
        rig.lane.put(_Request("pending"))
        assert rig.lane.hoped_ns(now_ns + 2 * lane._FORGIVES_NS) == rig.lane.delay_ns()
        monkeypatch.setattr(lane, "_FORGIVES_NS", 0)
        rig.gate.set()
        await rig.until_ended(2)
        assert rig.lane.mean_ns < slow_ns / 4

    _run(scenario)


def test_a_lane_that_is_asked_seldom_learns_that_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request after a rest: else slow work would pass for brief for ever, and be computed on the loop."""
    monkeypatch.setattr(lane, "_FORGIVES_NS", 0)

    async def scenario(rig: _Rig) -> None:
        before_ns = rig.lane.mean_ns
        rig.lane.put(_Request("slow"))
        await asyncio.sleep(0.2)
        rig.gate.set()
        await rig.until_ended(1)
        assert rig.lane.mean_ns > 10 * before_ns

    _run(scenario)


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


@dataclass
class _Here:
    """A lane whose work is brief: what was computed in order, whether on the loop's thread, and what else ran when."""

    lane: Lane[_Request, str]
    log: list[str] = field(default_factory=list)
    here: dict[str, bool] = field(default_factory=dict)
    on_end: Callable[[str], None] = lambda name: None

    async def until_ended(self, count: int) -> None:
        while self.lane.pending or len(self.here) < count:
            self.log.append("-")
            await asyncio.sleep(0)


def _run_here(scenario: Callable[[_Here], Coroutine[None, None, None]], brief_ns: int = 10**12) -> _Here:
    """Run a coroutine function on a lane of brief work; a request named slow takes 20 ms."""

    async def main() -> _Here:
        loop, home = asyncio.get_running_loop(), threading.get_ident()
        engine = Engine(loop, 8)

        def compute(requests: Sequence[_Request]) -> list[str | Exception]:
            for one in requests:
                rig.here[one.name] = threading.get_ident() == home
                rig.log.append(one.name)
                if one.name.startswith("slow"):
                    threading.Event().wait(0.02)
            return [one.name for one in requests]

        def finish(request: _Request, _result: str | Exception, _began_ns: int) -> None:
            rig.on_end(request.name)

        rig = _Here(Lane(loop, engine, compute, finish, brief_ns=brief_ns))
        engine.start()
        try:
            await asyncio.wait_for(scenario(rig), 10)
        finally:
            assert engine.stop(timeout_s=10)
        return rig

    return asyncio.run(main())


def test_brief_work_is_computed_on_the_loop_by_priority() -> None:
    """The first at once; what came with it when all was read, the most urgent first; none by the thread."""

    async def scenario(rig: _Here) -> None:
        for name, priority in (("a", 5), ("b", 5), ("c", 10), ("d", 1)):
            rig.lane.put(_Request(name, priority, brief=True))
        assert rig.log == ["a"]
        await rig.until_ended(4)

    rig = _run_here(scenario)

    assert [name for name in rig.log if name != "-"] == ["a", "d", "b", "c"]
    assert all(rig.here.values())


def test_a_turn_ends_and_the_loop_looks_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a turn is over others run before the next; with no time at all, after each piece."""
    monkeypatch.setattr(lane, "_TURN_NS", 0)

    async def scenario(rig: _Here) -> None:
        for name in "abcd":
            rig.lane.put(_Request(name, brief=True))
        await rig.until_ended(4)

    rig = _run_here(scenario)

    assert rig.log[:7] == ["a", "-", "b", "-", "c", "-", "d"]


def test_a_client_that_asks_on_and_on_takes_turns_too() -> None:
    """A request that is put by another's answer waits with the rest, however many follow each other."""

    async def scenario(rig: _Here) -> None:
        def ask_on(name: str) -> None:
            if int(name) < 5000:
                rig.lane.put(_Request(str(int(name) + 1), brief=True))

        rig.on_end = ask_on
        rig.lane.put(_Request("0", brief=True))
        await rig.until_ended(5001)

    rig = _run_here(scenario)

    assert rig.log[:3] == ["0", "-", "1"]
    assert len(rig.here) == 5001 and all(rig.here.values())


def test_work_that_grows_slow_leaves_the_loop_and_comes_back() -> None:
    """After a slow one the thread computes; when that has been quick for a while the loop does, under load as well."""

    async def scenario(rig: _Here) -> None:
        rig.lane.put(_Request("first", brief=True))
        rig.lane.put(_Request("slow", brief=True))
        await rig.until_ended(2)
        for number in range(200):
            rig.lane.put(_Request(f"{number}", brief=True))
        await rig.until_ended(202)

    rig = _run_here(scenario, brief_ns=2_000_000)

    assert rig.here["first"] and not rig.here["0"]
    assert any(rig.here[f"{number}"] for number in range(200))


def test_a_client_that_asks_alone_keeps_the_loop_for_longer_until_another_asks() -> None:
    """Nobody could be read or answered meanwhile; as soon as two wait at once, the thread computes beside the loop."""

    async def scenario(rig: _Here) -> None:
        async def ask(*names: str) -> None:
            count = len(rig.here) + len(names)
            for name in names:
                rig.lane.put(_Request(name, brief=True))
            await rig.until_ended(count)

        for number in range(lane._ALONE + 2):
            await ask(f"slow-{number}")
        await ask("slow-a", "slow-b", "slow-c")
        await ask("slow-d")

    rig = _run_here(scenario, brief_ns=8_000_000)

    alone = [rig.here[f"slow-{number}"] for number in range(lane._ALONE + 2)]
    assert not alone[lane._ALONE - 3] and all(alone[lane._ALONE - 1 :])
    assert not rig.here["slow-c"] and not rig.here["slow-d"]


def test_what_may_take_long_goes_to_the_thread_and_the_others_wait() -> None:
    """A session is used by one at a time: nothing is computed on the loop meanwhile."""

    async def scenario(rig: _Here) -> None:
        rig.lane.put(_Request("slow", brief=False))
        rig.lane.put(_Request("a", brief=True))
        assert rig.lane.pending == 2
        await rig.until_ended(2)

    rig = _run_here(scenario)

    assert rig.here == {"slow": False, "a": True}
    assert [name for name in rig.log if name != "-"] == ["slow", "a"]
