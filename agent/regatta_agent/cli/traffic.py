"""What `regatta-agent status --bytes` shows: bytes on the wire by cause, since enrolment."""

from __future__ import annotations

import time

import click

from regatta_agent.cli.options import print_json, print_table
from regatta_agent.config import AgentConfig
from regatta_agent.disk.traffic import TrafficFile, read_traffic
from regatta_protocol.traffic import Amount, Cause

__all__ = ["show_traffic"]

_DAY_S = 86_400.0
_MEANINGS = {
    Cause.CONNECTION: "handshakes, subscribing",
    Cause.KEEPALIVE: "pings",
    Cause.PRESENCE: "being up: at connecting, and heartbeats",
    Cause.REPORTS: "what runs here",
    Cause.TELEMETRY: "races and served windows",
    Cause.ASSIGNMENT: "what shall run here",
    Cause.METADATA: "signed metadata, races of other devices",
    Cause.TRANSFER: "models",
    Cause.RESULTS: "outputs of batch jobs, over HTTPS",
    Cause.OTHER: "anything else",
}


def show_traffic(config: AgentConfig, json_output: bool) -> None:
    """Print the sums."""
    file = read_traffic(config.state_dir, config.run_dir)
    amounts = file.amounts() if file is not None else {}
    total = sum(amounts.values(), Amount())
    if json_output:
        causes = {cause.value: {"sent": got.sent, "received": got.received} for cause, got in amounts.items()}
        since = file.since if file is not None else None
        print_json({"since": since, "sent": total.sent, "received": total.received, "causes": causes})
        return
    if file is None:
        click.echo("no traffic was counted yet: `regatta-agent run` counts, from its first connection on")
        return
    rows = [
        [cause.value, f"{got.sent:,}", f"{got.received:,}", f"{got.total:,}", _MEANINGS[cause]]
        for cause, got in sorted(amounts.items(), key=lambda item: -item[1].total)
    ]
    rows.append(["all", f"{total.sent:,}", f"{total.received:,}", f"{total.total:,}", _since(file)])
    print_table(["CAUSE", "SENT", "RECEIVED", "BYTES", ""], rows)


def _since(file: TrafficFile) -> str:
    days = (time.time() - file.since) / _DAY_S
    return f"in {days:.1f} days, headers of TLS, TCP and IP included"
