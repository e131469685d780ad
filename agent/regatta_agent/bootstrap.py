"""Builds the agent: the only place where its objects are made and joined."""

from __future__ import annotations

import queue
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from random import Random
from types import FrameType

from regatta_agent.actions import Actions
from regatta_agent.clock import Clock, FlooredClock, SystemClock
from regatta_agent.concluding import Conclusions
from regatta_agent.config import AgentConfig
from regatta_agent.core.facts import Limits
from regatta_agent.desired import DesiredState
from regatta_agent.disk.keeping import Keeper
from regatta_agent.disk.partial import kernel_boot
from regatta_agent.disk.priors import Priors
from regatta_agent.disk.quarantine_file import QuarantineFile
from regatta_agent.disk.record import RecordFile
from regatta_agent.disk.store import Store
from regatta_agent.disk.traffic import TrafficBook
from regatta_agent.events import INBOX_LENGTH, Event
from regatta_agent.loop import Loop, Parts
from regatta_agent.lost_identity import BusMaker, who_we_are
from regatta_agent.process.alarm import Alarm, armed
from regatta_agent.process.trouble import Trouble
from regatta_agent.reporter import Reporter, presence_will
from regatta_agent.settling import Settling
from regatta_agent.status import StateLock, StatusFile
from regatta_agent.surroundings import Surroundings
from regatta_agent.telemetry.courier import Courier
from regatta_agent.telemetry.outbox import Outbox
from regatta_agent.work.batch_runner import BatchRunner, BatchSettings
from regatta_agent.work.batch_work import BatchWork
from regatta_agent.work.board_probe import probe_board_apart
from regatta_agent.work.children import Launcher, ProcessLauncher
from regatta_agent.work.racing import RaceSettings
from regatta_agent.work.renewing import Renewing
from regatta_agent.work.results_sender import ResultsSender, SendingSettings
from regatta_agent.work.versions import versions_here
from regatta_agent.workers import WorkerPool
from regatta_protocol import __version__, topics
from regatta_protocol.bus import Bus, Will
from regatta_protocol.ids import parse_model_ref
from regatta_protocol.measurement import BoardFacts
from regatta_protocol.traffic import Ledger
from regatta_protocol.update_window import parse_window
from regatta_provisioning.identity import Identity
from regatta_provisioning.notify import Notifier

__all__ = ["assemble", "limits_of", "run_agent"]

_LONGEST_WINDOW_S = 60.0  # a worker that hangs is noticed by its windows; the outbox merges what waits longer
_BOOT_DIGITS = 16  # 64 random bits tell starts apart, and are in every heartbeat


def run_agent(config: AgentConfig) -> None:
    """Run the agent until SIGTERM or SIGINT.

    Raises:
        Misuse: when the device is not enrolled or its identity lost, and it has nothing to serve without; when another
            agent runs on its state; when a delegate file is wrong.
    """
    clock = SystemClock()
    traffic = TrafficBook(config.state_dir, config.run_dir, clock.wall())
    connect = partial(_mqtt_bus, ledger=traffic.ledger, keepalive_s=config.keepalive_s)
    identity, make_bus = who_we_are(config.state_dir, connect)
    config.run_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
    lock = StateLock(config.state_dir)
    lock.take()
    inbox: queue.Queue[Event] = queue.Queue(INBOX_LENGTH)
    launcher = ProcessLauncher(inbox)
    outbox = Outbox(
        config.state_dir / "outbox.sqlite",
        identity.device,
        config.outbox_max_bytes,
        max_age_s=config.outbox_max_age_s,
    )
    try:
        with armed() as alarm:
            outbox.open()
            loop = assemble(
                config,
                identity,
                inbox=inbox,
                launcher=launcher,
                outbox=outbox,
                make_bus=make_bus,
                board=probe_board_apart(config),
                clock=clock,
                rng=Random(),  # noqa: S311 - jitter, not secrets
                boot=uuid.uuid4().hex[:_BOOT_DIGITS],
                notifier=Notifier.from_environment(),
                alarm=alarm,
                traffic=traffic,
            )
            with _stopping_on_signals(loop):
                loop.run()
    finally:
        launcher.close()
        outbox.close()
        lock.release()


def assemble(
    config: AgentConfig,
    identity: Identity,
    *,
    inbox: queue.Queue[Event],
    launcher: Launcher,
    outbox: Outbox,
    make_bus: BusMaker,
    board: BoardFacts,
    clock: Clock,
    rng: Random,
    boot: str,
    notifier: Notifier,
    alarm: Alarm | None = None,
    traffic: TrafficBook | None = None,
) -> Loop:
    """Return a loop over the given adapters; the scenario tests give it fakes."""
    device, limits = identity.device, limits_of(config)
    time, trouble, versions = FlooredClock(clock), Trouble(), versions_here(board)
    bus = make_bus(inbox, identity, presence_will(device, boot, __version__))
    store = Store(config.state_dir, kernel_boot(config.sysroot))
    window_s = min(config.telemetry_period_s, _LONGEST_WINDOW_S)
    workers = WorkerPool(config.run_dir, store, launcher, window_s, config.power, config.sysroot, config.serving)
    quarantine = QuarantineFile(config.state_dir)
    race = RaceSettings(
        config.sysroot,
        config.race_budget_s,
        config.race_threads,
        quarantine,
        Priors(config.state_dir),
        config.delegate_files,
        config.power,
    )
    trust_dir = config.state_dir / "trust"
    actions = Actions(
        bus, launcher, identity, store, workers, race, trust_dir=trust_dir, run_dir=config.run_dir, boot=boot
    )
    courier = Courier(
        outbox,
        bus,
        device,
        config.telemetry_period_s,
        free_bytes=store.free_bytes,
        full_wait_s=limits.space_wait_s,
    )
    keeper = Keeper(RecordFile(config.state_dir), store, clock, limits.space_wait_s)
    surroundings = Surroundings(store, workers, actions, time, versions, trouble)
    conclusions = Conclusions(surroundings, store, workers, actions, courier, quarantine, time, rng, limits, versions)
    book = traffic or TrafficBook(config.state_dir, config.run_dir, clock.wall())
    sending = SendingSettings(
        config.batch_folder,
        config.batch_results,
        config.link == "metered",
        identity.certificate_path.parent,
    )
    batch = BatchSettings(config.batch_folder, config.batch_inputs, config.run_dir, config.disk_reserve_bytes)
    return Loop(
        Parts(
            inbox=inbox,
            bus=bus,
            clock=time,
            limits=limits,
            keeper=keeper,
            store=store,
            workers=workers,
            actions=actions,
            desired=DesiredState(launcher, identity, rng, boot),
            courier=courier,
            reporter=Reporter(bus, device, board, boot, __version__, config.heartbeat_period_s),
            renewing=Renewing(launcher, identity.certificate_path.parent, rng, boot, store.free_bytes),
            batch_work=BatchWork(
                BatchRunner(launcher, batch, boot),
                ResultsSender(launcher, sending, limits, book.ledger, rng, boot),
                keeper,
                time,
                rng,
                limits,
            ),
            surroundings=surroundings,
            conclusions=conclusions,
            settling=Settling(surroundings, keeper, actions, conclusions, trouble, time, limits),
            trouble=trouble,
            notifier=notifier,
            alarm=alarm or Alarm(),
            traffic=book,
            status=StatusFile(config.run_dir, boot, clock.wall()),
        )
    )


def limits_of(config: AgentConfig) -> Limits:
    """Return the planner's bounds as the operator set them."""
    return Limits(
        max_attempts=config.max_attempts,
        backoff_base_s=config.backoff_base_s,
        backoff_cap_s=config.backoff_cap_s,
        disk_reserve_bytes=config.disk_reserve_bytes,
        keep_previous=config.keep_previous,
        pinned=frozenset(map(parse_model_ref, config.pinned)),
        disk_budget_bytes=config.disk_budget_bytes,
        update_window=tuple(map(parse_window, config.update_window)),
        metered=config.link == "metered",
    )


def _mqtt_bus(inbox: queue.Queue[Event], identity: Identity, will: Will, *, ledger: Ledger, keepalive_s: int) -> Bus:
    from regatta_protocol.mqtt import MqttBus, MqttConfig

    settings = MqttConfig(
        host=identity.broker_host,
        port=identity.broker_port,
        client_id=identity.device,
        ca_path=identity.ca_path,
        cert_path=identity.certificate_path,
        key_path=identity.key_path,
        filters=topics.device_filters(identity.device),
        will=will,
        keepalive_s=keepalive_s,
    )
    return MqttBus(settings, inbox, ledger=ledger)


@contextmanager
def _stopping_on_signals(loop: Loop) -> Iterator[None]:
    def stop(number: int, _frame: FrameType | None) -> None:
        # Only an attribute is set: the handler may interrupt the loop while it holds its inbox's lock.
        loop.stopping = signal.Signals(number).name

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
