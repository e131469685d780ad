"""What a device at rest costs on the network in a month, by cause: `./run bench bytes [--beats N]`.

The agent's adapter and reporter at a real server's broker over mutual TLS. The kernel counts the bytes, headers of TCP
and IP (version 4) included; what one connection, report, heartbeat and ping cost is multiplied by how many a month has.
Beside it: an MQTT connection that does nothing but keep itself alive.
"""

from __future__ import annotations

import argparse
import json
import platform
import queue
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from regatta_agent.config import AgentConfig, read_settings
from regatta_agent.core.facts import Facts
from regatta_agent.core.installs import AgentRecord
from regatta_agent.reporter import Reporter, presence_will
from regatta_fleet.demo.programs import Programs
from regatta_protocol import __version__, topics
from regatta_protocol.bus import Connected, Event, Published
from regatta_protocol.mqtt import MqttBus, MqttConfig
from regatta_protocol.traffic import Cause, Ledger
from regatta_provisioning.identity import Identity, load_identity
from regatta_runtimes.board.probe import probe_board

_MONTH_S = 30 * 86_400.0
_RECONNECTIONS = 4  # a month, of a stable link
_DEADLINE_S = 30.0
_GOAL_BYTES = 500_000
_FACTS = Facts(now_s=0.0, online=True, free_bytes=0, stored={}, jobs={}, workers={}, links={})


def open_bus(identity: Identity, keepalive_s: int, ledger: Ledger) -> tuple[MqttBus, queue.Queue[Event]]:
    """Return a bus that is connected as the agent connects."""
    inbox: queue.Queue[Event] = queue.Queue(1000)
    settings = MqttConfig(
        host=identity.broker_host,
        port=identity.broker_port,
        client_id=identity.device,
        ca_path=identity.ca_path,
        cert_path=identity.certificate_path,
        key_path=identity.key_path,
        filters=topics.device_filters(identity.device),
        will=presence_will(identity.device, "0" * 16, __version__),
        keepalive_s=keepalive_s,
    )
    bus = MqttBus(settings, inbox, ledger=ledger)
    bus.start()
    await_event(inbox, Connected)
    return bus, inbox


def await_event(inbox: queue.Queue[Event], kind: type[Event]) -> None:
    """Take events until one of a kind comes."""
    while not isinstance(inbox.get(timeout=_DEADLINE_S), kind):
        pass


def total(ledger: Ledger, cause: Cause) -> int:
    """Return the bytes of a cause, both ways."""
    found = ledger.totals().get(cause)
    return 0 if found is None else found.total


def messages(identity: Identity, beats: int) -> dict[str, float]:
    """Return what a connection, a report and a heartbeat cost."""
    ledger = Ledger()
    bus, inbox = open_bus(identity, 600, ledger)
    reporter = Reporter(bus, identity.device, probe_board(Path("/")), "0" * 16, __version__, heartbeat_s=1.0)

    def cost(cause: Cause, act: Callable[[], None]) -> int:
        before = total(ledger, cause)
        act()
        await_event(inbox, Published)
        time.sleep(0.2)  # what acknowledges the acknowledgement is still on its way
        return total(ledger, cause) - before

    presence = cost(Cause.PRESENCE, reporter.connected)
    report = cost(Cause.REPORTS, lambda: reporter.send(AgentRecord(), _FACTS, 0.0))
    beaten = sum(cost(Cause.PRESENCE, lambda at=10.0 * beat: reporter.beat(at)) for beat in range(1, beats + 1))  # type: ignore[misc]
    connection = total(ledger, Cause.CONNECTION) + total(ledger, Cause.ASSIGNMENT)
    bus.stop()
    return {"connection": connection + presence, "report": report, "heartbeat": beaten / beats}


def ping_bytes(identity: Identity, pings: int) -> float:
    """Return what a keepalive costs."""
    ledger = Ledger()
    bus, _ = open_bus(identity, 1, ledger)
    seen: list[int] = []
    stop_s = time.monotonic() + pings * 2 + _DEADLINE_S
    while len(seen) <= pings and time.monotonic() < stop_s:
        now = ledger.totals().get(Cause.KEEPALIVE)
        if now is not None and now.sent not in seen:
            seen.append(now.sent)
        time.sleep(0.05)
    spent = total(ledger, Cause.KEEPALIVE)
    bus.stop()
    return spent / len(seen)


def month(config: AgentConfig, costs: dict[str, float], ping: float) -> dict[str, float]:
    """Return a month's bytes at rest by cause."""
    pings = _MONTH_S / config.keepalive_s if config.keepalive_s < config.heartbeat_period_s else 0.0
    return {
        "keepalive": pings * ping,
        "heartbeats": _MONTH_S / config.heartbeat_period_s * costs["heartbeat"],
        "a report a day": 30 * costs["report"],
        f"{_RECONNECTIONS} reconnections": _RECONNECTIONS * (costs["connection"] + costs["report"]),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beats", type=int, default=20, metavar="N", help="heartbeats to average over [20]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Programs(Path(name)) as programs:
        home, state = Path(name) / "fleet", Path(name) / "state"
        programs.start("server", "regatta_fleet", "up", "--home", str(home))
        stop_s = time.monotonic() + _DEADLINE_S
        while not (home / "server.json").exists():
            if time.monotonic() > stop_s:
                sys.exit(f"gave up after {_DEADLINE_S:g} s: the server does not answer")
            time.sleep(0.1)
        ask = ("device", "token", "--device", "porch", "--home", str(home), "--json")
        token = json.loads(programs.run("regatta_fleet", *ask))["token"]
        programs.run("regatta_agent", "enroll", token, "--state-dir", str(state))
        identity = load_identity(state / "identity")
        costs = messages(identity, arguments.beats)
        ping = ping_bytes(identity, max(3, arguments.beats // 4))
    print(f"{platform.machine()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    print("bytes with TLS, TCP and IPv4 headers, both ways")
    for what, cost in {**costs, "ping": ping}.items():
        print(f"  one {what:12} {cost:8.0f}")
    unmetered, metered = AgentConfig(), read_settings({"link": "metered"}, "metered")
    columns = {
        "MQTT alone, 60 s": {"keepalive": _MONTH_S / 60 * ping},
        "MQTT alone, 30 min": {"keepalive": _MONTH_S / 1800 * ping},
        'link = "unmetered"': month(unmetered, costs, ping),
        'link = "metered"': month(metered, costs, ping),
    }
    print(f"\n{'A MONTH AT REST, KB':22}" + "".join(f"{name:>20}" for name in columns))
    for cause in month(metered, costs, ping):
        print(f"{cause:22}" + "".join(f"{column.get(cause, 0.0) / 1000:20.1f}" for column in columns.values()))
    print(f"{'all':22}" + "".join(f"{sum(column.values()) / 1000:20.1f}" for column in columns.values()))
    reached = sum(columns['link = "metered"'].values()) <= _GOAL_BYTES
    print(f"\ngoal: metered at most {_GOAL_BYTES / 1000:.0f} KB: {'reached' if reached else 'missed'}")


if __name__ == "__main__":
    main()
