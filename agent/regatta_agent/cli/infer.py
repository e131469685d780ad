"""`regatta-agent infer`: ask a served model, or a model file, about pictures, sounds, tables and arrays."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from regatta_agent.asking import Reply, ask
from regatta_agent.cli.drawing import Plot
from regatta_agent.client import Client
from regatta_agent.inputs.records import open_records
from regatta_agent.inputs.wanted import wanted_by
from regatta_agent.serving.alone import MODEL_NAME, ModelFile, is_model_file, serve_alone
from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import parse_model_name
from regatta_protocol.processing_file import read_processing

__all__ = ["infer", "model_options", "opened_model"]

DEFAULT_RUN_DIR = "/run/regatta-agent"
_MAX_LABELS_BYTES = 8 * 1024 * 1024
_FILE = click.Path(path_type=Path, dir_okay=False)
_SHOWN_VALUES = 8


def model_options(command: Any) -> Any:  # noqa: ANN401 - a decorator of click
    """Add the options that say where a model is: --run-dir, and for a file --names, --processing and --threads."""
    for decorate in (
        click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 64), help="Of a model file."),
        click.option("--processing", type=_FILE, help="Of a model file: TOML or JSON (docs/processing.md)."),
        click.option("--names", type=_FILE, help="Of a model file: the names of its classes, one a line."),
        click.option(
            "--run-dir",
            default=DEFAULT_RUN_DIR,
            envvar="REGATTA_RUN_DIR",
            show_default=True,
            type=click.Path(path_type=Path),
            help="Where the agent's sockets are.",
        ),
    ):
        command = decorate(command)
    return command


@contextlib.contextmanager
def opened_model(
    model: str, run_dir: Path, names: Path | None, processing: Path | None, threads: int
) -> Iterator[tuple[Path, str]]:
    """Yield the socket and the name of a served model, or of a file that is served meanwhile.

    Raises:
        Rejected: when it is neither a name nor a file that can be served.
    """
    if is_model_file(model):
        described = None if processing is None else read_processing(processing)
        with serve_alone(ModelFile(Path(model), names, described, threads)) as socket:
            yield socket, MODEL_NAME
        return
    if names is not None or processing is not None:
        raise Rejected("--names and --processing are for a model file: a served model has its own")
    name = parse_model_name(model)
    yield run_dir / f"{name}.sock", name


@click.command(name="infer")
@click.argument("model")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--top", default=5, show_default=True, type=click.IntRange(1, 1000), help="How many classes to print.")
@click.option("--label", help="The right label or class of the files: told to the worker, which counts its accuracy.")
@click.option("--labels", type=_FILE, help="A text file with the right one of each sample, one a line, told likewise.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the answers on the pictures: a .png, or a folder.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for each sample.")
@model_options
def infer(
    model: str,
    files: tuple[str, ...],
    top: int,
    label: str | None,
    labels: Path | None,
    plot: Path | None,
    as_json: bool,
    **place: Any,  # noqa: ANN401 - the model's options
) -> None:
    """Infer each FILE with MODEL and print classes, boxes, keypoints or what else it answers.

    MODEL is the name of a served model, or a .tflite or .onnx file. A FILE is a picture, a WAV sound, a .npy array, a
    CSV or parquet table with one sample a row, a folder of such files, or - for standard input.

    \b
    Examples:
      regatta-agent infer mobilenet cat.bmp
      regatta-agent infer ssd street.jpg --plot found.png
      regatta-agent infer digits samples.npy --labels truth.txt --json
      regatta-agent infer kws.tflite yes.wav --processing kws.toml --names words.txt
      ffmpeg -i clip.mp4 -frames:v 1 -f image2pipe - | regatta-agent infer ssd -
    """
    if label is not None and labels is not None:
        raise Rejected("give --label for all samples or --labels for each of them, not both")
    truth = _Truth(label, None if labels is None else _read(labels))
    drawing = None if plot is None else Plot(plot)
    with opened_model(model, **place) as (socket, name), Client(socket) as client:
        for record in open_records(files, wanted_by(client.metadata(name))).rows:
            right, request_id = truth.next(record.key), f"infer-{time.time_ns():x}"
            try:
                item = record.read()
                began_ns = time.perf_counter_ns()
                reply = ask(client, name, item, top=top, request_id=request_id)
            except Rejected as err:
                raise Rejected(f"{record.key}: {err}") from err
            answer = {"file": record.key, **reply.document}
            answer["latency_us"] = (time.perf_counter_ns() - began_ns) / 1000
            if right is not None:
                known = int(right) if right.isascii() and right.isdigit() else right
                answer["correct"] = client.feedback(name, request_id, label=known)
            if drawing is not None:
                answer["plot"] = str(drawing.save(record.key, item, reply))
            click.echo(json.dumps(answer) if as_json else _text(answer, reply))
    truth.check_used_up()


class _Truth:
    """The right answers, in the order of the samples."""

    def __init__(self, label: str | None, lines: bytes | None) -> None:
        self._label = label
        self._labels = None if lines is None else lines.decode(errors="replace").splitlines()
        self._next = 0

    def next(self, sample: str) -> str | None:
        """Return the label of the next sample, or None when none was given.

        Raises:
            Rejected: when there are fewer labels than samples.
        """
        if self._labels is None:
            return self._label
        if self._next >= len(self._labels):
            raise Rejected(f"--labels has {len(self._labels)} lines, but there are more samples: {sample} has none")
        self._next += 1
        return self._labels[self._next - 1].strip()

    def check_used_up(self) -> None:
        """Raise Rejected when labels are left over: they were for other samples."""
        if self._labels is not None and self._next != len(self._labels):
            raise Rejected(f"--labels has {len(self._labels)} lines for {self._next} samples: are they of these files?")


def _read(file: Path) -> bytes:
    try:
        return read_bounded(file, _MAX_LABELS_BYTES)
    except OSError as err:
        raise Rejected(f"{file} cannot be read: {err.strerror}") from err


def _text(answer: dict[str, Any], reply: Reply) -> str:
    verdict = "" if "correct" not in answer else (" correct" if answer["correct"] else " wrong")
    lines = [f"{answer['file']} ({answer['latency_us'] / 1000:.1f} ms){verdict}"]
    for one in answer.get("classes", ()):
        share = one.get("share")
        lines.append(f"  {one['score']:9.6f}  {one['label']}" if share is None else f"  {share:7.1%}  {one['label']}")
    for one in answer.get("objects", ()):
        box = one["box"]
        corners = f"{box['left']:.0f},{box['top']:.0f} – {box['right']:.0f},{box['bottom']:.0f}"
        lines.append(f"  {one['score']:9.6f}  {one['label']}  {corners}")
    if answer["kind"] == "detection" and not answer["objects"]:
        lines.append("  no objects")
    for one in answer.get("keypoints", ()):
        lines.append(f"  {one['score']:9.6f}  {one['name']}  {one['x']:.0f},{one['y']:.0f}")
    if answer["kind"] == "anomaly":
        word = {True: "  anomalous", False: "  normal"}.get(answer.get("anomalous", ""), "")
        lines.append(f"  {answer['score']:9.6f}{word}")
    for name, output in answer.get("outputs", {}).items():
        values = ", ".join(f"{value:g}" for value in output["values"][:_SHOWN_VALUES])
        lines.append(f"  {name} {output['shape']}: {values}{', …' if len(output['values']) > _SHOWN_VALUES else ''}")
    if "plot" in answer:
        lines.append(f"  drawn in {answer['plot']}")
    return "\n".join(lines)
