"""Fakes for the agent's seams: children that follow a script, a clock that is moved by hand.

`ScriptedLauncher` stands for the verifier, the race and the serving workers; what each answers is set by the test.
It speaks the real messages of these programs, so that only the processes are fake.
"""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from regatta_agent.events import ChildEnded, ChildLine, Event
from regatta_agent.serving.events import Ready, SelfTest
from regatta_agent.serving.spec import MAX_SPEC_BYTES, ServeSpec
from regatta_agent.work.batch_runner import BatchSpec
from regatta_agent.work.results_sender import SendingSpec
from regatta_protocol.codec import decode, encode
from regatta_protocol.ids import Digest
from regatta_protocol.measurement import PriorRace, RaceReport
from regatta_protocol.plain import read_json, to_json
from regatta_provisioning.verifying import AssignmentJob, MetadataJob, VerifyResult, parse_job

__all__ = ["FakeClock", "ScriptedChild", "ScriptedLauncher"]


class FakeClock:
    """Time that passes only when told to."""

    def __init__(self, wall_s: float = 1_790_000_000.0) -> None:
        self._monotonic_s = 100.0
        self._wall_s = wall_s

    def monotonic(self) -> float:
        return self._monotonic_s

    def wall(self) -> float:
        return self._wall_s

    def pass_by(self, seconds: float) -> None:
        """Let time go by on both clocks."""
        self._monotonic_s += seconds
        self._wall_s += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock alone, as NTP or a dead battery does."""
        self._wall_s += seconds


@dataclass
class ScriptedChild:
    """A child that exists only as events."""

    name: str
    argv: tuple[str, ...]
    launcher: ScriptedLauncher
    pid: int
    ended: bool = False
    on_finish: Callable[[], None] | None = None  # what it does when its standard input ends; None: it ends too

    def finish(self) -> None:
        if self.on_finish is not None and not self.ended:
            self.on_finish()
        self.end(0)

    def kill(self) -> None:
        self.end(-9)

    def say(self, line: bytes) -> None:
        """Write a line on standard output."""
        self.launcher.inbox.put(ChildLine(self.name, line))

    def end(self, status: int, errors: str = "") -> None:
        """End, once."""
        if not self.ended:
            self.ended = True
            self.launcher.inbox.put(ChildEnded(self.name, status, errors))


Verify = Callable[[AssignmentJob | MetadataJob], VerifyResult]
RunRace = Callable[[str, int, PriorRace | None], RaceReport]


@dataclass
class ScriptedLauncher:
    """Starts scripted children; set `verify`, `race`, `race_key` and `serve` to say how they behave."""

    inbox: queue.Queue[Event]
    verify: Verify
    race: RunRace
    race_key: Digest | None = None  # what a race asks for before it begins; None: it does not ask
    serve: Callable[[ScriptedChild, ServeSpec], None] | None = None  # None: gets ready at once
    renew: Callable[[ScriptedChild], None] | None = None  # None: no certificate is due
    batch: Callable[[ScriptedChild, BatchSpec], None] | None = None  # None: runs until it is killed
    sending: Callable[[ScriptedChild, SendingSpec], None] | None = None  # None: runs until it is killed
    children: list[ScriptedChild] = field(default_factory=list)

    def launch(
        self,
        name: str,
        argv: Sequence[str],
        stdin: bytes | None,
        pass_fds: Sequence[int] = (),
        gives_way: bool = False,
    ) -> ScriptedChild:
        child = ScriptedChild(name, tuple(argv), self, pid=10_000 + len(self.children))
        self.children.append(child)
        programs: Mapping[str, Callable[[ScriptedChild, bytes], None]] = {
            "regatta_provisioning.renewal": self._renewal,
            "regatta_agent.batch.fleet_job": self._batch,
            "regatta_agent.batch.sending": self._sending,
            "regatta_provisioning.verifier": self._verifier,
            "regatta_runtimes.race.run": self._race,
            "regatta_agent.serving": self._worker,
        }
        programs[argv[2]](child, stdin or b"")
        return child

    def close(self) -> None:
        for child in self.children:
            child.kill()

    def alive(self, prefix: str = "") -> list[ScriptedChild]:
        """Return the children that have not ended."""
        return [child for child in self.children if not child.ended and child.name.startswith(prefix)]

    def _verifier(self, child: ScriptedChild, stdin: bytes) -> None:
        child.say(encode(self.verify(parse_job(stdin))))
        child.end(0)

    def _renewal(self, child: ScriptedChild, _stdin: bytes) -> None:
        if self.renew is not None:
            self.renew(child)
            return
        child.say(b"not due")
        child.end(0)

    def _batch(self, child: ScriptedChild, stdin: bytes) -> None:
        spec = decode(BatchSpec, stdin)
        if self.batch is not None:
            self.batch(child, spec)

    def _sending(self, child: ScriptedChild, stdin: bytes) -> None:
        spec = decode(SendingSpec, stdin)
        if self.sending is not None:
            self.sending(child, spec)

    def _race(self, child: ScriptedChild, _stdin: bytes) -> None:
        spec = json.loads(Path(child.argv[3]).read_text())

        def begin() -> None:
            path = Path(spec["prior_path"])
            prior = decode(PriorRace, path.read_bytes()) if path.exists() else None
            report = self.race(spec["model"], spec["version"], prior)
            Path(child.argv[5]).write_bytes(encode(report.model_copy(update={"key": self.race_key})))

        if self.race_key is None:
            begin()
            child.end(0)
        else:
            child.on_finish = begin
            child.say(f"key {self.race_key}".encode())

    def _worker(self, child: ScriptedChild, _stdin: bytes) -> None:
        spec = read_json(ServeSpec, Path(child.argv[3]).read_bytes(), MAX_SPEC_BYTES)
        if self.serve is not None:
            self.serve(child, spec)
            return
        spec.socket_path.touch()
        child.say(to_json(Ready(load_us=1000.0, self_test=SelfTest(samples=4, passed=True, reason="equal"))))
