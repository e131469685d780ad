"""`regatta-agent batch`: a model's answers to many records, in a file; run it again after a kill and it goes on."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from regatta_agent.batch.job import Job, Summary, run_job
from regatta_agent.cli.infer import model_options, opened_model
from regatta_agent.cli.options import as_json, print_json
from regatta_protocol.errors import Rejected

__all__ = ["batch"]

_SAID_EVERY_S = 10.0  # where progress goes to a file


@click.command()
@click.argument("model")
@click.option("--input", "inputs", required=True, multiple=True, metavar="DIR|PATTERN|FILE|-", help="May be repeated.")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.jsonl|.csv|.npy|.parquet",
    help="Where the results go; .npy: the first output's real values, for arrays.",
)
@click.option(
    "--top", default=0, type=click.IntRange(0, 1000), help="How many classes or objects. [as described, or 5]"
)
@click.option("--in-flight", default=3, show_default=True, type=click.IntRange(1, 64), help="Requests at a time.")
@click.option(
    "--patience",
    "patience_s",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long a model that is away, busy or failing is asked again.",
)
@click.option("--restart", is_flag=True, help="Begin again, and replace the output.")
@model_options
@as_json
def batch(
    model: str,
    inputs: tuple[str, ...],
    output: Path,
    top: int,
    in_flight: int,
    patience_s: float,
    restart: bool,
    json_output: bool,
    **place: Any,  # noqa: ANN401 - the model's options
) -> None:
    """Answer every record of the inputs with MODEL, and write the results to a file.

    MODEL is the name of a served model, or a .tflite or .onnx file, which needs no fleet. Records are the files below a
    folder or of a pattern, or the rows of .npy, CSV and parquet files. A job that was cut off goes on when the same
    command is run again: no record is lost or doubled. The output appears when it is whole.

    Ends with 65 when records were refused; their results say why. Ends with 75 when the model was away for too long.

    \b
    Examples:
      regatta-agent batch mobilenet --input photos/ --output labels.csv
      regatta-agent batch vww.tflite --input 'day/*.jpg' --output found.jsonl --threads 2
      regatta-agent batch kws --input features.npy --output scores.npy --json
    """
    with opened_model(model, **place) as (socket, name):
        job = Job(
            model=model,
            name=name,
            socket=socket,
            inputs=inputs,
            output=output,
            top=top,
            in_flight=in_flight,
            patience_s=patience_s,
            restart=restart,
        )
        summary = run_job(job, _Teller().tell)
    if json_output:
        print_json({**asdict(summary), "per_second": round(summary.per_second, 1)})
    else:
        click.echo(_words(summary))
        if not summary.records:
            click.echo(f"nothing to answer was found in {', '.join(inputs)}", err=True)
    if summary.refused:
        raise Rejected(f"{summary.refused} of {summary.records} records were refused: see their error in {output}")


class _Teller:
    """Tells progress on standard error: one line that changes on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._began = self._said = time.monotonic()
        self._first: int | None = None
        self._line = sys.stderr.isatty()

    def tell(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = done
        if not self._line and now - self._said < _SAID_EVERY_S:
            return
        self._said = now
        rate = (done - self._first) / max(now - self._began, 1e-9)
        of = "" if total is None else f" of {total} ({done / max(total, 1):.0%})"
        left = "" if total is None or rate <= 0 else f", {(total - done) / rate:.0f} s left"
        text = f"{done}{of} records, {rate:.0f}/s{left}"
        click.echo(f"\r\033[K{text}" if self._line else text, nl=not self._line, err=True)
        if self._line and done == total:
            click.echo(err=True)


def _words(summary: Summary) -> str:
    resumed = f", the first {summary.resumed_at} by an earlier run" if summary.resumed_at else ""
    rate = f"{summary.per_second:.0f} a second"
    records = f"{summary.records} record{'' if summary.records == 1 else 's'}"
    return f"{records} in {summary.output}{resumed} ({summary.seconds:.1f} s, {rate})"
