"""`regatta batch results`: the outputs of a batch, pulled from its devices into a folder; what is there is kept."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import click

from regatta_fleet import figures
from regatta_fleet.cli import output
from regatta_fleet.cli.connection import connected, examples, json_option
from regatta_fleet.cli.parsing import DURATION, SIZE
from regatta_fleet.client import FleetClient
from regatta_fleet.schemas import MAX_RESULTS_BYTES, BatchDetail, BatchOnDevice, ResultsRequest
from regatta_protocol.batch import BatchState, ResultsState
from regatta_protocol.errors import Rejected, Retryable
from regatta_protocol.ids import DeviceId, Digest, parse_device_id
from regatta_protocol.manifest import FileRef

__all__ = ["results"]

_LOOK_S = 0.5
_READ_BYTES = 1024 * 1024


@dataclass(frozen=True)
class _Got:
    """What came of one device's output; neither `path` nor `refused`: it is still on its way."""

    device: DeviceId
    said: str
    size_bytes: int | None = None
    path: Path | None = None
    refused: bool = False


@click.command(
    epilog=examples(
        "regatta batch results b-7f3a9c01 --output results/",
        "regatta batch results b-7f3a9c01 --output results/ --on cam-1 --on cam-2 --max-size 1GB",
        "regatta batch results b-7f3a9c01 --output results/ --delete",
    )
)
@click.argument("batch_id", metavar="ID")
@click.option(
    "--output",
    "folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="A folder here; it gets a file ID-DEVICE for each device.",
)
@click.option("--on", multiple=True, metavar="DEVICE", help="Only of this device; may be repeated.")
@click.option("--max-size", type=SIZE, default="64MiB", show_default=True, help="Refuse longer ones.")
@click.option("--timeout", type=DURATION, default="10m", show_default=True, help="How long to wait for devices.")
@click.option("--delete", is_flag=True, help="Remove the server's copies once all are in the folder.")
@json_option
@connected
def results(
    client: FleetClient,
    batch_id: str,
    folder: Path,
    on: tuple[str, ...],
    max_size: int,
    timeout: float,
    delete: bool,
    as_json: bool,
) -> None:
    """Pull the results of a batch from the devices that have done it.

    Each device sends its output to the server, which checks its digest; from there it is written to the folder. What
    is cut off goes on when the command is run again, and what has come is not sent again. A device on a metered link
    refuses, unless its operator allows it. `regatta batch cancel ID` ends what is on its way.

    The exit code is 65 when a device refuses or has not done the job, and 75 when --timeout came first.
    """
    if not 1 <= max_size <= MAX_RESULTS_BYTES:
        raise Rejected(f"--max-size is {max_size} bytes: the most is {figures.size(MAX_RESULTS_BYTES)}")
    wanted = frozenset(parse_device_id(one) for one in on)
    detail = client.ask_results(batch_id, ResultsRequest(on=tuple(sorted(wanted)), max_bytes=max_size))
    folder.mkdir(parents=True, exist_ok=True)
    got = _collected(client, detail, folder, wanted, time.monotonic() + timeout)
    missing = [one for one in got if one.path is None]
    if delete and not missing:
        client.forget_results(batch_id)
    _print(got, as_json)
    late = [one.device for one in missing if not one.refused]
    if late:
        raise Retryable(f"{', '.join(late)} sent nothing whole in {timeout:g} s: run it again to go on")
    if missing:
        raise Rejected(f"there are no results of {', '.join(one.device for one in missing)}: the reasons are above")


def _collected(
    client: FleetClient, detail: BatchDetail, folder: Path, wanted: frozenset[DeviceId], deadline_s: float
) -> list[_Got]:
    """Return how each output stands once none is on its way any more, or at the deadline."""
    here: dict[DeviceId, _Got] = {}
    while True:
        chosen = [one for one in detail.devices if not wanted or one.device in wanted]
        for one in chosen:
            if one.device not in here and (found := _fetched(client, detail, one, folder)) is not None:
                here[one.device] = found
                output.hint(f"{one.device}: {found.said}, {figures.size(found.size_bytes)}")
        got = [here.get(one.device) or _standing(one) for one in chosen]
        if all(one.path is not None or one.refused for one in got) or time.monotonic() > deadline_s:
            return got
        time.sleep(_LOOK_S)
        try:
            detail = client.batch(detail.id)
        except Retryable:  # a server that is away or busy meanwhile is waited for
            if time.monotonic() > deadline_s:
                raise


def _fetched(client: FleetClient, detail: BatchDetail, one: BatchOnDevice, folder: Path) -> _Got | None:
    """Return what is in the folder now, or None when the server does not have it yet."""
    pulled = one.results
    if pulled is None or pulled.state is not ResultsState.HERE or pulled.size_bytes is None or pulled.digest is None:
        return None
    path = folder / f"{detail.id}-{one.device}{Path(detail.output).suffix}"
    file = FileRef(digest=pulled.digest, size_bytes=pulled.size_bytes)
    if _is_there(path, file):
        return _Got(one.device, "here already", file.size_bytes, path)
    client.fetch_output(detail.id, one.device, file, path)
    return _Got(one.device, "here", file.size_bytes, path)


def _standing(one: BatchOnDevice) -> _Got:
    pulled = one.results
    if pulled is None:
        done = one.state is BatchState.DONE
        return _Got(one.device, "not asked for" if done else f"the job is {one.state}: it has no results", refused=True)
    if pulled.state in (ResultsState.REFUSED, ResultsState.CANCELLED):
        said = f"{pulled.state}: {pulled.reason or 'no reason given'}"
        return _Got(one.device, said, pulled.size_bytes, refused=True)
    came = f"{figures.size(pulled.received_bytes)} of {figures.size(pulled.size_bytes)}" if pulled.size_bytes else ""
    return _Got(one.device, pulled.reason or f"sending: {came}", pulled.size_bytes)


def _is_there(path: Path, file: FileRef) -> bool:
    if not path.is_file() or path.stat().st_size != file.size_bytes:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_READ_BYTES):
            digest.update(piece)
    return Digest(digest.hexdigest()) == file.digest


def _print(got: list[_Got], as_json: bool) -> None:
    if as_json:
        found = [
            {"device": one.device, "path": None if one.path is None else str(one.path), "size_bytes": one.size_bytes,
             "said": one.said}
            for one in got
        ]  # fmt: skip
        output.print_json({"devices": found})
        return
    rows = tuple(
        (
            str(one.device),
            output.Cell("here" if one.path else "missing" if one.refused else "on its way", _style(one)),
            figures.size(one.size_bytes),
            str(one.path or one.said),
        )
        for one in got
    )
    columns = (
        output.Column("DEVICE"),
        output.Column("RESULTS"),
        output.Column("SIZE", right=True),
        output.Column("WHERE", wide=True),
    )
    output.print_table(output.Table(columns, rows))


def _style(one: _Got) -> output.Style:
    return "good" if one.path else "bad" if one.refused else ""
