"""`regatta-agent infer`: ask a served model about files, through its socket like any application."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from regatta_agent.client import Client
from regatta_agent.serving.sources import MAX_FILE_BYTES, input_shape, read_samples
from regatta_agent.serving.tensors import Array
from regatta_protocol.errors import Rejected, TooLarge
from regatta_protocol.ids import parse_model_name

__all__ = ["infer"]

DEFAULT_RUN_DIR = "/run/regatta-agent"


@click.command(name="infer")
@click.argument("model")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--top", default=5, show_default=True, type=click.IntRange(1, 1000), help="How many classes to print.")
@click.option("--label", help="The right label or class of the files: told to the worker, which counts its accuracy.")
@click.option(
    "--labels",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A text file with the right label or class of each sample, one a line, told to the worker likewise.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for each sample.")
@click.option(
    "--run-dir",
    default=DEFAULT_RUN_DIR,
    envvar="REGATTA_RUN_DIR",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where the agent's sockets are.",
)
def infer(
    model: str,
    files: tuple[str, ...],
    top: int,
    label: str | None,
    labels: Path | None,
    as_json: bool,
    run_dir: Path,
) -> None:
    """Infer each FILE with MODEL and print the best classes.

    A FILE is a picture, a .npy array or a CSV table with one sample a row; - reads standard input.

    \b
    Examples:
      regatta-agent infer mobilenet cat.bmp
      regatta-agent infer digits samples.npy --labels truth.txt --json
    """
    if label is not None and labels is not None:
        raise Rejected("give --label for all samples or --labels for each of them, not both")
    name = parse_model_name(model)
    truth = _Truth(label, None if labels is None else _read(str(labels)))
    with Client(run_dir / f"{name}.sock") as client:
        for file in files:
            for answer in _answers(client, name, file, top, truth):
                click.echo(json.dumps(answer) if as_json else _text(answer))
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


def _read(file: str) -> bytes:
    """Return the file's bytes, or standard input's."""
    try:
        with click.open_file(file, "rb") as stream:
            data: bytes = stream.read(MAX_FILE_BYTES + 1)
    except OSError as err:
        raise Rejected(f"{file} cannot be read: {err.strerror}") from err
    if len(data) > MAX_FILE_BYTES:
        raise TooLarge(f"{file} is over the limit of {MAX_FILE_BYTES} bytes")
    return data


def _answers(client: Client, model: str, file: str, top: int, truth: _Truth) -> Iterator[dict[str, Any]]:
    samples = read_samples(_read(file), file, input_shape(client.metadata(model)))
    for index, sample in enumerate(samples):
        name = file if len(samples) == 1 else f"{file}[{index}]"
        yield {"file": name, **_answer(client, model, sample, top, truth.next(name))}


def _answer(client: Client, model: str, sample: Array, top: int, label: str | None) -> dict[str, Any]:
    """Return the answer to one sample: its best classes, or the outputs when they are no classes."""
    output = client.metadata(model)["outputs"][0]
    request_id = f"infer-{time.time_ns():x}"
    began_ns = time.perf_counter_ns()
    answer: dict[str, Any]
    if int(output["shape"][-1]) > 1 and all(int(size) in (1, -1) for size in output["shape"][:-1]):
        scores = client.classify(model, sample, top=top, request_id=request_id)
        answer = {"classes": [{"index": s.index, "score": s.score, "label": s.label} for s in scores]}
    else:
        outputs = client.infer(model, sample, request_id=request_id)
        answer = {
            "outputs": {name: {"shape": list(o.shape), "values": o.ravel().tolist()} for name, o in outputs.items()}
        }
    answer["latency_us"] = (time.perf_counter_ns() - began_ns) / 1000
    if label is not None:
        right = int(label) if label.isascii() and label.isdigit() else label
        answer["correct"] = client.feedback(model, request_id, label=right)
    return answer


def _text(answer: dict[str, Any]) -> str:
    verdict = "" if "correct" not in answer else (" correct" if answer["correct"] else " wrong")
    lines = [f"{answer['file']} ({answer['latency_us'] / 1000:.1f} ms){verdict}"]
    lines += [f"  {entry['score']:9.6f}  {entry['label']}" for entry in answer.get("classes", ())]
    for name, output in answer.get("outputs", {}).items():
        values = ", ".join(f"{value:g}" for value in output["values"][:8])
        lines.append(f"  {name} {output['shape']}: {values}{', …' if len(output['values']) > 8 else ''}")
    return "\n".join(lines)
