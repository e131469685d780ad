"""`regatta batch`: a model's answers to many records on devices; a summary comes back, the results when asked for."""

from __future__ import annotations

import click

from regatta_fleet.cli import batch_tables, output
from regatta_fleet.cli.batch_results import results
from regatta_fleet.cli.connection import connected, examples, json_option
from regatta_fleet.client import FleetClient
from regatta_fleet.schemas import BatchDetail, BatchRequest
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import parse_device_id, parse_model_name

__all__ = ["batch"]

_ID = click.argument("batch_id", metavar="ID")


@click.group()
def batch() -> None:
    """Have devices answer many records that lie on them.

    The operator of a device allows that by batch_folder and batch_inputs in its agent.toml. How far a job is, and a
    summary at its end, are shown here; the results stay on the device until `results` pulls them.
    """


@batch.command(
    epilog=examples(
        "regatta batch start mobilenet --on cam-1 --input /data/photos",
        "regatta batch start vww --on group:lab --input '/data/day/*.jpg' --output found.csv --limit 1000",
        "regatta batch start kws --on cam-1 --on cam-2 --input /data/features.npy --format npy --json",
    )
)
@click.argument("model", metavar="MODEL")
@click.option("--on", multiple=True, required=True, help="all, group:NAME or a device id; may be repeated.")
@click.option("--input", "source", required=True, metavar="PATH", help="On the device: a folder, pattern or file.")
@click.option("--output", "target", metavar="PATH", help="Below the device's batch_folder [default: ID.FORMAT].")
@click.option(
    "--format",
    "ending",
    type=click.Choice(["jsonl", "csv", "npy", "parquet"]),
    default="jsonl",
    show_default=True,
    help="Of the results, when --output does not say.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N records.")
@json_option
@connected
def start(
    client: FleetClient,
    model: str,
    on: tuple[str, ...],
    source: str,
    target: str | None,
    ending: str,
    limit: int | None,
    as_json: bool,
) -> None:
    """Start a job with the version of MODEL that serves on each device."""
    detail = client.start_batch(_request(model, on, source, target, ending, limit))
    _print(detail, as_json)
    output.hint(f"`regatta batch show {detail.id}` shows how far it is")


@batch.command("list", epilog=examples("regatta batch list", "regatta batch list --json"))
@json_option
@connected
def list_batches(client: FleetClient, as_json: bool) -> None:
    """List the newest batches, newest first."""
    found = client.batches()
    if as_json:
        output.print_json(found)
    else:
        output.print_table(batch_tables.batches(found))


@batch.command(epilog=examples("regatta batch show b-7f3a9c01", "regatta batch show b-7f3a9c01 --json"))
@_ID
@json_option
@connected
def show(client: FleetClient, batch_id: str, as_json: bool) -> None:
    """Show a batch: on each device its state, progress, and what came of it."""
    _print(client.batch(batch_id), as_json)


@batch.command(epilog=examples("regatta batch cancel b-7f3a9c01"))
@_ID
@json_option
@connected
def cancel(client: FleetClient, batch_id: str, as_json: bool) -> None:
    """End a batch on every device that has not ended it, and the pulling of its results; what is done stays there."""
    _print(client.cancel_batch(batch_id), as_json)


batch.add_command(results)


def _print(detail: BatchDetail, as_json: bool) -> None:
    if as_json:
        output.print_json(detail)
        return
    output.line(f"batch {detail.id}: {detail.model} over {detail.input}, results in {detail.output}")
    output.print_table(batch_tables.batch_devices(detail))
    for one in detail.devices:
        if one.summary is not None:
            output.line()
            output.print_table(batch_tables.batch_summary(one.device, one.summary))


def _request(
    model: str, on: tuple[str, ...], source: str, target: str | None, ending: str, limit: int | None
) -> BatchRequest:
    from pydantic import ValidationError

    chosen = tuple(part.strip() for one in on for part in one.split(",") if part.strip())
    for one in chosen:
        if one != "all" and not one.startswith("group:"):
            parse_device_id(one)
    try:
        return BatchRequest.model_validate(
            {
                "model": parse_model_name(model),
                "on": chosen,
                "input": source,
                "output": target,
                "format": ending,
                "limit": limit,
            }
        )
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        raise Rejected(f"this batch is not valid: {'.'.join(map(str, first['loc']))}: {first['msg']}") from err
