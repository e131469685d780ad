"""`regatta-agent pipeline`: frames from a camera, a stream, a folder or a topic, answers to topics, URLs and files."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import click

from regatta_agent.cli.infer import DEFAULT_RUN_DIR
from regatta_agent.cli.options import as_json, print_json, print_table
from regatta_agent.client import Client
from regatta_agent.pipeline.counters import openmetrics, read_counters
from regatta_agent.pipeline.running import Running
from regatta_agent.pipeline.settings import DEFAULT_PIPELINES_PATH, load_pipelines
from regatta_protocol.errors import Rejected

__all__ = ["pipeline"]

_run_dir = click.option(
    "--run-dir",
    default=DEFAULT_RUN_DIR,
    envvar="REGATTA_RUN_DIR",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where the agent's sockets are.",
)
_status_dir = click.option(
    "--status-dir",
    default="/run/regatta-pipelines",
    envvar="REGATTA_PIPELINES_DIR",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where pipelines tell what they count.",
)
_config = click.option(
    "--config",
    default=DEFAULT_PIPELINES_PATH,
    show_default=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file that describes the pipelines (docs/pipelines.md).",
)


@click.group()
def pipeline() -> None:
    """Run pipelines: frames from a source, a model's answers, results to sinks."""


@pipeline.command()
@click.argument("name")
@_config
@_run_dir
@_status_dir
@as_json
def run(name: str, config: Path, run_dir: Path, status_dir: Path, json_output: bool) -> None:
    """Run the pipeline NAME until SIGTERM, Ctrl-C or the end of its source.

    \b
    Examples:
      regatta-agent pipeline run gate
      systemctl enable --now regatta-pipeline@gate
    """
    known = load_pipelines(config)
    if name not in known:
        raise Rejected(f"{config} has no pipeline {name!r}: there are {', '.join(known) or 'none'}")
    with Client(run_dir / f"{known[name].model}.sock") as client:
        running = Running(name, known[name], client, status_dir)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: running.stop())
        counters = running.run()
    if json_output:
        print_json(counters.model_dump())
    else:
        click.echo(
            f"{counters.answered} answered of {counters.came} frames, {counters.dropped} dropped, "
            f"{counters.refused} refused, {counters.undelivered} undelivered"
        )


@pipeline.command()
@_config
@as_json
def check(config: Path, json_output: bool) -> None:
    """Check the file that describes the pipelines, and list them.

    \b
    Examples:
      regatta-agent pipeline check --config pipelines.toml
    """
    known = load_pipelines(config)
    if json_output:
        print_json({name: one.model_dump(mode="json") for name, one in known.items()})
        return
    rows = [
        (name, one.model, one.source.kind, ", ".join(sink.kind for sink in one.sinks), one.policy)
        for name, one in known.items()
    ]
    print_table(("PIPELINE", "MODEL", "SOURCE", "SINKS", "WHEN FULL"), rows)


@pipeline.command()
@click.option("--metrics", is_flag=True, help="Print OpenMetrics, for a scraper or node exporter's textfile folder.")
@_status_dir
@as_json
def status(metrics: bool, status_dir: Path, json_output: bool) -> None:
    """Show what the pipelines of this board count.

    \b
    Examples:
      regatta-agent pipeline status
      regatta-agent pipeline status --metrics > /var/lib/prometheus/node-exporter/regatta.prom
    """
    counters = read_counters(status_dir)
    if metrics:
        click.echo(openmetrics(counters), nl=False)
    elif json_output:
        print_json({name: one.model_dump() for name, one in counters.items()})
    elif not counters:
        click.echo(f"no pipeline has run here: nothing is counted in {status_dir}")
    else:
        now = time.time()
        rows = [
            (
                name, str(one.came), str(one.answered), str(one.dropped), str(one.refused), str(one.undelivered),
                f"{now - one.told_at:.0f} s ago", one.last_error or "",
            )
            for name, one in counters.items()
        ]  # fmt: skip
        print_table(("PIPELINE", "CAME", "ANSWERED", "DROPPED", "REFUSED", "UNDELIVERED", "TOLD", "LAST ERROR"), rows)
