"""`regatta-agent enroll` and `renew`: have this device's key certified by the fleet, at first and again."""

from __future__ import annotations

import time
from pathlib import Path

import click

from regatta_agent.cli.options import as_json, folder_options, print_json

__all__ = ["enroll", "renew"]


@click.command()
@click.argument("token")
@click.option("--device", "device_text", help="The id to take; otherwise the token's or one that the fleet gives.")
@click.option("--force", is_flag=True, help="Replace the identity that this device has.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=1), default=30.0, show_default=True, help="Seconds.")
@folder_options
@as_json
def enroll(
    token: str,
    device_text: str | None,
    force: bool,
    timeout_s: float,
    config_path: Path | None,
    state_dir: Path | None,
    run_dir: Path | None,
    json_output: bool,
) -> None:
    """Join a fleet with a one-time TOKEN from `regatta device token`. The private key never leaves this device.

    \b
    Examples:
      regatta-agent enroll rgt1.eyJ1cmwiOi…
      regatta-agent enroll TOKEN --device kitchen-pi --state-dir ./state
    """
    from regatta_agent.config import load_config
    from regatta_agent.status import is_running
    from regatta_protocol.durable import make_folder_durably
    from regatta_protocol.ids import parse_device_id
    from regatta_provisioning.enroll import enroll as join
    from regatta_runtimes.board.probe import probe_board

    config = load_config(config_path, {"state_dir": state_dir, "run_dir": run_dir})
    device = parse_device_id(device_text) if device_text else None
    make_folder_durably(config.state_dir, mode=0o700)  # a power cut must not lose the name of what is made in it
    identity = join(
        token,
        config.state_dir / "identity",
        device=device,
        board=probe_board(config.sysroot),
        timeout_s=timeout_s,
        force=force,
    )
    if json_output:
        print_json({"fleet": identity.fleet, "device": identity.device, "api_url": identity.api_url})
        return
    follow = "start it with `regatta-agent run`"
    if is_running(config.state_dir):
        follow = "the agent that runs goes on as before: restart it (sudo systemctl restart regatta-agent)"
    click.echo(f"enrolled as {identity.device} in the fleet {identity.fleet}; {follow}")


@click.command()
@click.option("--force", is_flag=True, help="Renew although it is not due.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=1), default=30.0, show_default=True, help="Seconds.")
@folder_options
@as_json
def renew(
    force: bool,
    timeout_s: float,
    config_path: Path | None,
    state_dir: Path | None,
    run_dir: Path | None,
    json_output: bool,
) -> None:
    """Renew this device's certificate when a third of its life or less is left. The daemon does so by itself, daily.

    \b
    Examples:
      regatta-agent renew
      regatta-agent renew --force
    """
    from regatta_agent.config import load_config
    from regatta_provisioning.renewal import renew as ask

    config = load_config(config_path, {"state_dir": state_dir, "run_dir": run_dir})
    renewed = ask(config.state_dir / "identity", now=time.time(), force=force, timeout_s=timeout_s)
    if json_output:
        print_json({"renewed": renewed is not None, "ends": None if renewed is None else renewed.ends})
        return
    click.echo(
        "not due yet" if renewed is None else f"renewed until {time.strftime('%Y-%m-%d', time.gmtime(renewed.ends))}"
    )
