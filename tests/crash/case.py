"""One story with one seed, set up once and then run again and again from the same state, each time ended otherwise."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from crash.bugs import planted
from crash.comeback import come_back
from crash.device import STATE, Device, adjusted, enrol
from crash.forks import Ended, Tell, fork
from crash.heard import Heard, Violation
from crash.scenarios import Scenario, play
from crash.shim import Call, Shim, calls_in

__all__ = ["Case", "KnownState", "LabError", "Run"]

_ACT_S = 300.0  # by the fake clock


class LabError(Exception):
    """The lab itself does not do what it says."""


class KnownState(Exception):
    """What a point leaves was hit before, or it leaves nothing."""


@dataclass(frozen=True)
class Run:
    """What came of running the story."""

    ended: Ended
    calls: tuple[Call, ...]
    moments: tuple[int, ...]  # for each piece of news, how many calls had been made when it was told

    @property
    def told(self) -> tuple[list[Any], ...]:
        return self.ended.told


class Case:
    """A story in a folder of its own, to be interrupted.

    Args of the constructor:
        scenario: the story.
        seed: of everything that varies.
        folder: to work in.
        bug: planted in the agent (bugs.py), or None.
    """

    def __init__(self, scenario: Scenario, seed: int, folder: Path, bug: str | None) -> None:
        self.scenario = scenario
        self.seed = seed
        self.bug = bug
        self.shim = Shim()
        self.place = folder / "d"  # where it always runs, so that every path is the same each time
        self._given = folder / "given"

    def __str__(self) -> str:
        return f"{self.scenario.name} of seed {self.seed}"

    @cached_property
    def before(self) -> tuple[list[Any], ...]:
        """Bring about what is given; return what was told meanwhile."""
        folder = self._given
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "run").mkdir()
        enrol(folder / STATE)
        if not self.scenario.given:
            return ()

        def work(tell: Tell) -> None:
            with adjusted(lambda: device):
                device = self.device(folder, tell)
                device.start()
                play(device, self.scenario.given, 0, _ACT_S)
                device.kill()

        ended = fork(work).join()
        if ended.status != 0:
            raise LabError(f"what is given of {self} does not come about: {ended.error}")
        return tuple(news for news in ended.told if news[0] != "act")

    def device(self, folder: Path, tell: Tell) -> Device:
        """Return the device, not started."""
        device = Device(folder, self.seed, tell, outbox_bytes=self.scenario.outbox_bytes)
        self.scenario.prepare(device)
        return device

    def story(self, tell: Tell) -> None:
        """Run the whole story once. For a fork."""
        with adjusted(lambda: device), planted(self.bug):
            device = self.device(self.place, tell)
            device.start()
            play(device, self.scenario.acts, 0, _ACT_S)
            tell("played", self.seed)
            device.kill()

    def run(
        self, plan: Callable[[Shim], None], *, with_data: bool = False, story: Callable[[Tell], None] | None = None
    ) -> Run:
        """Run the story, or another, on a fresh copy of what is given, with every call counted; `plan` is told when."""
        self.lay_out()
        log = os.memfd_create("calls")
        shim = self.shim

        def work(tell: Tell) -> None:
            def tell_when(*news: object) -> None:
                tell(shim.count(), *news)

            shim.begin(self.place, log, with_data=with_data)
            plan(shim)
            try:
                (story or self.story)(tell_when)
            finally:
                shim.end()

        try:
            ended = fork(work).join()
            calls = tuple(calls_in(log))
        finally:
            os.close(log)
        moments = tuple(news[0] for news in ended.told)
        return Run(Ended(ended.status, tuple(news[1:] for news in ended.told), ended.error), calls, moments)

    @cached_property
    def recording(self) -> Run:
        """The story from its start to its end, undisturbed."""
        run = self.run(lambda _shim: None, with_data=True)
        if run.ended.status != 0:
            raise LabError(f"{self} does not come to its end by itself: {run.ended.error}")
        return run

    @property
    def played(self) -> int:
        """How many calls the recorded story made until all its acts were over."""
        run = self.recording
        return next(moment for news, moment in zip(run.told, run.moments, strict=True) if news[0] == "played")

    def lay_out(self) -> None:
        """Put what is given in place, anew."""
        assert self.before is not None
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self._given, self.place, symlinks=True)

    def only_state_given(self) -> Path:
        """Return the state folder as it is given; not to be changed."""
        assert self.before is not None
        return self._given / STATE

    def heard(self, run: Run, calls: int | None = None) -> Heard:
        """Return what the fleet had heard by the end of the run, or by the time of so many calls.

        Raises:
            Violation: when that contradicts itself.
        """
        told = (
            news for news, moment in zip(run.told, run.moments, strict=True) if calls is None or moment <= calls
        )  # fmt: skip
        return Heard().hear_all(self.before).hear_all(told)

    def come_back(self, heard: Heard, *, power_cut: bool = False) -> str | None:
        """Start the agent again on what lies in place; return the promise that is broken, or None."""

        def work(tell: Tell) -> None:
            try:
                come_back(self.place, self.scenario, self.seed, heard, power_cut=power_cut)
            except Violation as err:
                tell("violation", str(err))

        ended = fork(work).join()
        if ended.status != 0:
            return f"the agent does not come back: {ended.error or ended.status}"
        return str(ended.told[0][1]) if ended.told else None
