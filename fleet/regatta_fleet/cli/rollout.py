"""`regatta rollout`: send a version to devices in waves, and follow what the gate makes of their measurements."""

from __future__ import annotations

import time
from collections.abc import Iterator

import click

from regatta_fleet import figures
from regatta_fleet.cli import exit_codes, output, rollout_tables
from regatta_fleet.cli.connection import connected, examples, json_option
from regatta_fleet.cli.parsing import DURATION, GATE, WAVES, GateSetting
from regatta_fleet.client import FleetClient
from regatta_fleet.schemas import GateConfig, RolloutDetail, RolloutRequest, RolloutState, WaveState
from regatta_protocol.errors import Rejected, Retryable
from regatta_protocol.ids import parse_device_id, parse_model_ref

__all__ = ["follow", "rollout"]

_FOLLOW_PERIOD_S = 0.5
_EXIT = {
    RolloutState.COMPLETED: 0,
    RolloutState.ROLLED_BACK: exit_codes.NOT_COMPLETED,
    RolloutState.ABORTED: exit_codes.NOT_COMPLETED,
    RolloutState.HELD: exit_codes.HELD,
}


@click.group()
def rollout() -> None:
    """Send a version to devices in waves, and watch its gate."""


@rollout.command(
    epilog=examples(
        "regatta rollout start digits:1 --to all",
        "regatta rollout start digits:2 --to group:lab --waves 10%,50%,100% --wait",
        "regatta rollout start digits:2 --to cam-1 --to cam-2 --gate accuracy-drop=1% --gate on-failure=hold",
        "regatta rollout start digits:3 --ignore-window --wait  # a mend that cannot wait for tonight",
    )
)
@click.argument("ref", metavar="MODEL:V")
@click.option(
    "--to", multiple=True, default=("all",), help="all, group:NAME or a device id; may be repeated [default: all]."
)
@click.option("--waves", type=WAVES, default="10%,50%,100%", show_default=True, help="Shares reached by each wave.")
@click.option(
    "--gate",
    type=GATE,
    multiple=True,
    help="When a wave passes: success-ratio=1, accuracy-drop=2%, p99-ratio=2, on-failure=roll-back|hold, timeout=1h.",
)
@click.option("--trial", type=DURATION, default="5s", show_default=True, help="How long a device tries it out.")
@click.option("--ignore-window", is_flag=True, help="It is urgent: devices do not wait for their update windows.")
@click.option("--wait", "-w", is_flag=True, help="Follow it; the exit code says how it ended (0: completed).")
@click.option("--timeout", type=DURATION, default="1h", show_default=True, help="How long --wait waits.")
@json_option
@connected
def start(
    client: FleetClient,
    ref: str,
    to: tuple[str, ...],
    waves: tuple[float, ...],
    gate: tuple[GateSetting, ...],
    trial: float,
    ignore_window: bool,
    wait: bool,
    timeout: float,
    as_json: bool,
) -> int:
    """Send a version to devices in waves.

    Each wave's devices fetch the version, race it and serve it on trial; the gate then compares what they measured
    with the version they ran before. Devices that have an update window wait for it (`regatta window --help`), and
    the gate waits with them. With --wait the exit code is 0 when it completed, 3 when it was rolled back or aborted,
    4 when it is held, 75 when --timeout came first.
    """
    begun = client.start_rollout(_request(ref, to, waves, gate, trial, ignore_window))
    if not wait:
        if as_json:
            output.print_json(begun)
        else:
            devices = figures.counted(sum(len(wave.devices) for wave in begun.waves), "device")
            output.line(f"rollout {begun.id} of {begun.model}:{begun.version} to {devices} has begun")
            output.hint(f"`regatta rollout show {begun.id}` tells how it stands")
        return 0
    return _wait(client, begun, timeout, as_json)


@rollout.command("list", epilog=examples("regatta rollout list", "regatta rollout list --json"))
@json_option
@connected
def list_rollouts(client: FleetClient, as_json: bool) -> None:
    """List the rollouts, newest first."""
    found = sorted(client.rollouts(), key=lambda one: one.created_at, reverse=True)
    if as_json:
        output.print_json(found)
    else:
        output.print_table(rollout_tables.rollouts(found, time.time()))


@rollout.command(epilog=examples("regatta rollout show r-7f3a", "regatta rollout show r-7f3a --wait"))
@click.argument("rollout_id", metavar="ID")
@click.option("--wait", "-w", is_flag=True, help="Follow it to its end, as `start --wait` does.")
@click.option("--timeout", type=DURATION, default="1h", show_default=True, help="How long --wait waits.")
@json_option
@connected
def show(client: FleetClient, rollout_id: str, wait: bool, timeout: float, as_json: bool) -> int:
    """Show a rollout: its waves, their devices and the gate's reasons."""
    detail = client.rollout(rollout_id)
    if wait:
        return _wait(client, detail, timeout, as_json)
    _print(detail, as_json)
    return 0


@rollout.command(epilog=examples("regatta rollout abort r-7f3a"))
@click.argument("rollout_id", metavar="ID")
@json_option
@connected
def abort(client: FleetClient, rollout_id: str, as_json: bool) -> None:
    """Stop a rollout; its devices go back to what they ran before."""
    _print(client.abort_rollout(rollout_id), as_json)


@rollout.command(epilog=examples("regatta rollout promote r-7f3a"))
@click.argument("rollout_id", metavar="ID")
@json_option
@connected
def promote(client: FleetClient, rollout_id: str, as_json: bool) -> None:
    """Let a held or observed wave pass, whatever its gate said."""
    _print(client.promote_rollout(rollout_id), as_json)


def follow(client: FleetClient, first: RolloutDetail, timeout_s: float) -> Iterator[RolloutDetail]:
    """Yield the rollout whenever it has changed, until it is decided (completed, rolled back, aborted or held).

    A server that is away or busy meanwhile is waited for.

    Raises:
        Retryable: after `timeout_s`; the rollout goes on by itself.
    """
    deadline = time.monotonic() + timeout_s
    shown: RolloutDetail | None = None
    detail = first
    while True:
        if detail != shown:
            yield detail
            shown = detail
        if detail.state != RolloutState.RUNNING:
            return
        if time.monotonic() > deadline:
            raise Retryable(
                f"rollout {detail.id} is still running after {timeout_s:g} s; it goes on by itself: "
                f"`regatta rollout show {detail.id} --wait` follows it"
            )
        time.sleep(_FOLLOW_PERIOD_S)
        try:
            detail = client.rollout(detail.id)
        except Retryable:
            if time.monotonic() > deadline:
                raise


def _wait(client: FleetClient, first: RolloutDetail, timeout_s: float, as_json: bool) -> int:
    detail, said = first, None
    for detail in follow(client, first, timeout_s):
        lines = story(detail)
        if not as_json:
            for text, style in lines if said is None else [line for line in lines if line not in said]:
                output.line(text, style)
        said = lines
    if as_json:
        output.print_json(detail)
    return _EXIT[detail.state]


def story(detail: RolloutDetail) -> list[tuple[str, output.Style]]:
    """Return the rollout's story as lines; those that a former call did not hold are new."""
    waves = figures.counted(len(detail.waves), "wave")
    lines: list[tuple[str, output.Style]] = [(f"rollout {detail.id}: {detail.model}:{detail.version} in {waves}", "")]
    for wave in detail.waves:
        head = f"wave {wave.number} of {len(detail.waves)}"
        if wave.state == WaveState.PENDING:
            continue
        lines.append((f"{head}: sent to {rollout_tables.few(wave.devices)}", "dim"))
        if wave.state == WaveState.OBSERVING and (wave.succeeded or wave.failed):
            lines.append((f"{head}: {wave.succeeded} succeeded, {wave.failed} failed of {len(wave.devices)}", ""))
        if wave.state == WaveState.OBSERVING and wave.waiting:
            lines.append((f"{head}: {wave.reason}", "dim"))
        if wave.state in (WaveState.PROMOTED, WaveState.FAILED):
            good = wave.state == WaveState.PROMOTED
            lines.append((f"{head}: {wave.state}: {wave.reason or 'no reason given'}", "good" if good else "bad"))
    if detail.state != RolloutState.RUNNING:
        good = detail.state == RolloutState.COMPLETED
        reason = f": {detail.reason}" if detail.reason else ""
        lines.append((f"rollout {detail.id} {str(detail.state).replace('_', ' ')}{reason}", "good" if good else "bad"))
    return lines


def _print(detail: RolloutDetail, as_json: bool) -> None:
    if as_json:
        output.print_json(detail)
        return
    now = time.time()
    gate = detail.gate
    output.print_table(rollout_tables.rollouts([detail], now))
    output.line()
    output.print_table(rollout_tables.waves(detail))
    output.line()
    windows = "update windows are not waited for" if detail.ignore_window else "and the time until update windows open"
    output.line(
        f"Gate: success ratio ≥ {figures.share(gate.min_success_ratio)}, accuracy drop ≤ "
        f"{figures.share(gate.max_accuracy_drop)}, p99 ≤ {figures.ratio(gate.max_p99_ratio)}, else "
        f"{gate.on_failure.replace('_', ' ')}; decided within {gate.timeout_s:g} s, {windows}"
    )


def _request(
    ref: str,
    to: tuple[str, ...],
    waves: tuple[float, ...],
    gate: tuple[GateSetting, ...],
    trial_s: float,
    ignore_window: bool,
) -> RolloutRequest:
    from pydantic import ValidationError

    model = parse_model_ref(ref)
    chosen = tuple(part.strip() for one in to for part in one.split(",") if part.strip())
    for one in chosen:
        if one != "all" and not one.startswith("group:"):
            parse_device_id(one)
    try:
        return RolloutRequest(
            model=model.name,
            version=model.version,
            to=chosen,
            waves=waves,
            gate=GateConfig.model_validate(dict(gate)),
            trial_s=trial_s,
            ignore_window=ignore_window,
        )
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        raise Rejected(f"this rollout is not valid: {'.'.join(map(str, first['loc']))}: {first['msg']}") from err
