"""The serving workers: one process a version, its own socket, and the model's socket that leads to one of them.

`<run_dir>/<model>.sock` is a symbolic link into `<run_dir>/workers/`, replaced by a rename, so that the swap to a new
version and the way back take no longer than that. A worker that does not get ready, falls silent or does not drain in
time is killed.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from regatta_agent.core.facts import ShadowFacts, StartWorker, WorkerFacts
from regatta_agent.disk.store import Store
from regatta_agent.events import ChildEnded, ChildLine
from regatta_agent.process.bytecode import inherited_flags
from regatta_agent.serving import giving_way
from regatta_agent.serving.events import (
    Degraded,
    Drifted,
    Failed,
    Ready,
    Recovered,
    Shadowed,
    WindowClosed,
    parse_event,
)
from regatta_agent.serving.settings import ServingSettings
from regatta_agent.serving.spec import Contender, ServeLimits, ServeSpec, check_socket_path
from regatta_agent.serving.tcp import TcpListeners
from regatta_agent.work.children import Child, Launcher
from regatta_agent.work.overlays import overlay_of
from regatta_protocol.errors import Exhausted, Rejected, StorageFull
from regatta_protocol.ids import ModelName, ModelRef
from regatta_protocol.manifest import Manifest
from regatta_protocol.measurement import CandidateResult
from regatta_protocol.plain import to_json
from regatta_protocol.values import ServingWindow
from regatta_runtimes.power.settings import PowerSettings

__all__ = ["WorkerDeath", "WorkerNews", "WorkerPool"]

logger = logging.getLogger(__name__)

_READY_MARGIN_S = 15.0  # on top of the worker's own limit for load and self-test: interpreter start on a slow card
_SILENCE_S = 60.0  # on top of three windows: a worker says something every window
_DRAIN_MARGIN_S = 3.0


class WorkerDeath(NamedTuple):
    """A worker ended unasked."""

    ref: ModelRef
    candidate: str
    why: str
    lived_s: float
    unready: bool = False  # it ended before it could serve
    lack: StorageFull | Exhausted | None = None  # what the board had none of to start it: no fault of the version


class WorkerNews(NamedTuple):
    """What a worker says of its placement."""

    ref: ModelRef
    said: Degraded | Recovered | Drifted


@dataclass
class _Worker:
    ref: ModelRef
    candidate: str
    spec: ServeSpec
    spec_path: Path
    child: Child
    started_s: float  # monotonic, as all times here
    heard_s: float
    ready_s: float | None = None
    stopping_s: float | None = None
    killed_for: str | None = None
    requests: int = 0
    errors: int = 0
    shadow: ShadowFacts | None = None
    failure: str | None = None
    windows: list[ServingWindow] = field(default_factory=list)

    @property
    def is_ending(self) -> bool:
        return self.stopping_s is not None or self.killed_for is not None


class WorkerPool:
    """The workers of one agent. Used by the loop's thread only."""

    def __init__(
        self,
        run_dir: Path,
        store: Store,
        launcher: Launcher,
        window_s: float,
        power: PowerSettings = PowerSettings(),  # noqa: B008 - frozen
        sysroot: Path = Path("/"),
        serving: ServingSettings = ServingSettings(),  # noqa: B008 - frozen
    ) -> None:
        self._run_dir = run_dir
        self._folder = run_dir / "workers"
        self._store = store
        self._launcher = launcher
        self._window_s = window_s
        self._power = power
        self._sysroot = sysroot
        self._serving = serving
        self._tcp = TcpListeners(serving.tcp)
        self._workers: dict[str, _Worker] = {}
        self._started = 0

    def prepare(self) -> None:
        """Make the folder and clear what an agent before this one left there."""
        # A folder of its own: a model may be named like another model's worker.
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o750)  # whatever the umask: the service's group may reach the sockets, as their mode says
        # Not their *.regions: what clients registered holds for the workers that come, too.
        kinds = ("*.sock", "*.grpc", "*.shadow", ".*.new", "workers/*.sock", "workers/*.grpc", "workers/*.json")
        for pattern in kinds:
            for leftover in self._run_dir.glob(pattern):
                leftover.unlink(missing_ok=True)

    def start(self, step: StartWorker, now_s: float) -> None:
        """Start a worker for one version.

        Raises:
            Rejected: when the version has no such variant, or is not on disk.
            Misuse: when the run folder's name is too long for a socket.
            OSError: when the process cannot be started.
        """
        ref, candidate = step.ref, step.candidate
        manifest = self._store.manifest(ref)
        if manifest is None:
            raise Rejected(f"the manifest of {ref} is not on disk: it is fetched again")
        self._started += 1
        stem = f"{ref.name}-{ref.version}-{self._started}"
        spec = self._spec(manifest, step, self._folder / f"{stem}.sock")
        spec_path = self._folder / f"{stem}.json"
        gives_way = self._serves(ref.name)
        options = [giving_way.OPTION] if gives_way else []
        argv = [sys.executable, *inherited_flags(), "-m", "regatta_agent.serving", str(spec_path), *options]
        shared = () if spec.tcp_fd is None else (spec.tcp_fd,)
        try:
            spec_path.write_bytes(to_json(spec))
            child = self._launcher.launch(f"worker:{stem}", argv, None, shared, gives_way)
        except OSError:
            spec_path.unlink(missing_ok=True)
            raise
        self._workers[f"worker:{stem}"] = _Worker(ref, candidate, spec, spec_path, child, now_s, now_s)
        logger.info("event=worker_started version=%s candidate=%s pid=%d", ref, candidate, child.pid)

    def stop(self, ref: ModelRef, now_s: float, socket: str | None = None) -> None:
        """Let the workers of a version, or the one that listens on `socket`, answer what they were asked, and end."""
        for worker in self._workers.values():
            if socket is not None and worker.spec.socket_path.name != socket:
                continue
            if worker.ref == ref and worker.stopping_s is None:
                worker.stopping_s = now_s
                worker.child.finish()

    def stop_all(self, now_s: float) -> None:
        """Let every worker end, and listen on TCP no more."""
        self._tcp.close()
        for worker in list(self._workers.values()):
            self.stop(worker.ref, now_s)

    def _serves(self, name: ModelName) -> bool:
        """Return whether a worker of the model may be serving, which one that starts must not keep waiting."""
        ready = (one for one in self._workers.values() if one.ready_s is not None and not one.is_ending)
        return any(one.ref.name == name for one in ready)

    def running(self) -> int:
        """Return how many worker processes have not ended."""
        return len(self._workers)

    def facts(self, now_s: float) -> Mapping[ModelRef, WorkerFacts]:
        """Return what the worker of each version is up to: the first of two that are not ending."""
        return {ref: facts[0] for ref, facts in self._by_version(now_s).items()}

    def successors(self, now_s: float) -> Mapping[ModelRef, WorkerFacts]:
        """Return what the second worker of a version is up to, where there are two."""
        return {ref: facts[1] for ref, facts in self._by_version(now_s).items() if len(facts) > 1}

    def _by_version(self, now_s: float) -> dict[ModelRef, list[WorkerFacts]]:
        """Return the workers of each version in the order they were started, those that are ending last."""
        found: dict[ModelRef, list[WorkerFacts]] = {}
        for worker in sorted(self._workers.values(), key=lambda one: one.is_ending):
            facts = WorkerFacts(
                candidate=worker.candidate,
                ready=worker.ready_s is not None and worker.killed_for is None,
                ready_for_s=now_s - worker.ready_s if worker.ready_s is not None else 0.0,
                socket=worker.spec.socket_path.name,
                stopping=worker.is_ending,
                requests=worker.requests,
                errors=worker.errors,
                shadow=worker.shadow,
            )
            found.setdefault(worker.ref, []).append(facts)
        return found

    def handle(self, event: ChildLine | ChildEnded, now_s: float) -> WorkerDeath | WorkerNews | ServingWindow | None:
        """Return what an event of a worker comes to: telemetry, news, a death unasked, or nothing to do."""
        worker = self._workers.get(event.child)
        if worker is None:
            return None
        if isinstance(event, ChildEnded):
            return self._ended(worker, event, now_s)
        worker.heard_s = now_s
        try:
            said = parse_event(event.line)
        except Rejected as err:
            logger.warning("event=worker_said_nonsense version=%s error=%s", worker.ref, err)
            return None
        if isinstance(said, Ready):
            worker.ready_s = now_s
            logger.info("event=worker_ready version=%s self_test=%s", worker.ref, said.self_test.reason)
        elif isinstance(said, Failed):
            worker.failure = said.reason
        elif isinstance(said, WindowClosed):
            worker.requests += said.requests
            worker.errors += said.errors
            return said.window() if said.requests or said.stage_counts else None
        elif isinstance(said, Shadowed):
            worker.shadow = ShadowFacts(
                said.socket, said.requests, said.failed, said.classified, said.agreed, said.snr_db
            )
        elif worker.stopping_s is None:
            if isinstance(said, Recovered):
                worker.candidate = said.placement
            return WorkerNews(worker.ref, said)
        return None

    def tick(self, now_s: float) -> None:
        """Kill the workers that are over a deadline."""
        for worker in self._workers.values():
            reason = self._overdue(worker, now_s)
            if reason is not None and worker.killed_for is None:
                logger.warning("event=worker_killed version=%s reason=%s", worker.ref, reason)
                worker.killed_for = reason
                worker.child.kill()

    def free_bytes(self) -> int:
        """Return the space that is left for what a start leaves in the run folder."""
        facts = os.statvfs(self._run_dir)
        return facts.f_bavail * facts.f_frsize

    def links(self) -> Mapping[ModelName, str]:
        """Return for each model's socket the worker's socket that it leads to."""
        return self._led_to(".sock")

    def shadows(self) -> Mapping[ModelName, str]:
        """Return for each model the socket of the next version's worker that is shown a sample of its requests."""
        return self._led_to(".shadow")

    def _led_to(self, suffix: str) -> dict[ModelName, str]:
        return {
            ModelName(path.name.removesuffix(suffix)): path.readlink().name
            for path in self._run_dir.glob(f"*{suffix}")
            if path.is_symlink()
        }

    def point(self, ref: ModelRef, socket: str, *, shadow: bool = False) -> None:
        """Let the model's socket, or its shadow, lead to the worker's `socket`, in one rename.

        Raises:
            OSError: when the run folder cannot be written.
        """
        link = self._shadow(ref.name) if shadow else self._link(ref.name)
        self._lead(link, socket)
        if self._serving.grpc and not shadow:
            self._lead(_grpc_path(link), _grpc_path(Path(socket)).name)
        logger.info("event=%s version=%s socket=%s", "in_shadow" if shadow else "serving", ref, link)

    def _lead(self, link: Path, socket: str) -> None:
        fresh = self._run_dir / f".{link.name}.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(f"{self._folder.name}/{socket}")
        fresh.replace(link)

    def unpoint(self, name: ModelName, *, shadow: bool = False) -> None:
        """Take the model's socket, or its shadow, away."""
        (self._shadow(name) if shadow else self._link(name)).unlink(missing_ok=True)
        if self._serving.grpc and not shadow:
            _grpc_path(self._link(name)).unlink(missing_ok=True)

    def _ended(self, worker: _Worker, event: ChildEnded, now_s: float) -> WorkerDeath | None:
        del self._workers[event.child]
        try:
            worker.spec_path.unlink(missing_ok=True)
            worker.spec.socket_path.unlink(missing_ok=True)
            if worker.spec.grpc_path is not None:
                worker.spec.grpc_path.unlink(missing_ok=True)
        except OSError as err:  # the next start clears the folder
            logger.warning("event=worker_files_kept version=%s error=%s", worker.ref, err)
        if worker.stopping_s is not None:
            logger.info("event=worker_stopped version=%s", worker.ref)
            return None
        why = worker.failure or worker.killed_for or event.describe()
        logger.warning("event=worker_died version=%s reason=%s", worker.ref, why)
        unready = worker.ready_s is None
        return WorkerDeath(worker.ref, worker.candidate, why, now_s - worker.started_s, unready)

    def _overdue(self, worker: _Worker, now_s: float) -> str | None:
        limits = worker.spec.limits
        if worker.stopping_s is not None:
            late = now_s - worker.stopping_s > limits.drain_s + _DRAIN_MARGIN_S
            return f"not drained within {limits.drain_s:g} s" if late else None
        if worker.ready_s is None:
            late = now_s - worker.started_s > limits.self_test_s + _READY_MARGIN_S
            return f"not ready within {limits.self_test_s:g} s" if late else None
        silence_s = 3.0 * worker.spec.window_s + _SILENCE_S
        return f"silent for {silence_s:g} s" if now_s - worker.heard_s > silence_s else None

    def _spec(self, manifest: Manifest, step: StartWorker, socket_path: Path) -> ServeSpec:
        check_socket_path(socket_path)
        report = self._store.race(manifest.ref)
        raced = {one.id: one for one in report.candidates} if report is not None else {}
        policy = report.policy if report is not None and report.policy is not None else manifest.policy
        winner = self._contender(manifest, step.winner or step.candidate, raced.get)
        labels = manifest.labels
        standbys = tuple(self._contender(manifest, one, raced.get) for one in step.standbys)
        return ServeSpec(
            model=manifest.name,
            version=manifest.version,
            candidate_id=winner.candidate_id,
            variant_path=winner.variant_path,
            plugin=winner.plugin,
            latency=winner.latency,
            standbys=standbys,
            companions=() if step.resting is not None else standbys[: policy.pool_size - 1],
            guarded=step.guarded,
            resting=step.resting,
            max_slowdown=policy.max_slowdown,
            retried=step.retried,
            overlay=overlay_of(manifest, self._store),
            sysroot=self._sysroot,
            manifest_path=self._store.manifest_path(manifest.ref),
            labels_path=self._store.blob_path(labels.digest) if labels is not None else None,
            golden_path=self._store.blob_path(manifest.golden.digest),
            socket_path=socket_path,
            tcp_fd=self._tcp.fd_of(manifest.name),
            link_path=self._link(manifest.name),
            grpc_path=_grpc_path(socket_path) if self._serving.grpc else None,
            grpc_tcp=self._serving.grpc_tcp.get(manifest.name),
            shadow_path=self._shadow(manifest.name),
            tls=self._serving.tls,
            token_path=self._serving.token_file,
            shared_memory=self._serving.shared_memory,
            non_finite=self._serving.non_finite,
            max_batch=self._serving.max_batch,
            batch_delay_us=self._serving.batch_delay_us,
            limits=ServeLimits(queue_length=self._serving.queue_length, connections=self._serving.connections),
            window_s=self._window_s,
            power=self._power,
            race_power=raced[winner.candidate_id].power if winner.candidate_id in raced else None,
        )

    def _contender(
        self, manifest: Manifest, candidate: str, raced: Callable[[str], CandidateResult | None]
    ) -> Contender:
        """Return what opens the candidate just as the race did: its file, its library and what that was told."""
        name = candidate.split("/")[1] if candidate.count("/") >= 3 else ""
        variant = next((one for one in manifest.variants if one.name == name), None)
        if variant is None:
            raise Rejected(f"{manifest.ref} has no variant for the candidate {candidate!r}")
        result = raced(candidate)
        return Contender(
            candidate_id=candidate,
            variant_path=self._store.blob_path(variant.file.digest),
            plugin=result.plugin if result is not None else None,
            latency=result.latency if result is not None else None,
        )

    def _link(self, name: ModelName) -> Path:
        return self._run_dir / f"{name}.sock"

    def _shadow(self, name: ModelName) -> Path:
        return self._run_dir / f"{name}.shadow"


def _grpc_path(socket_path: Path) -> Path:
    """Return the path of gRPC's socket, or its link, beside HTTP's."""
    return socket_path.with_suffix(".grpc")
