"""`regatta-agent race MODEL.tflite`: the race alone, for any file, without a fleet: a better `benchmark_model`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regatta_agent.cli.options import as_json, config_option, print_json
from regatta_runtimes.choice.policy_options import given_policy, policy_options

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

    from regatta_runtimes.power.settings import PowerSettings

__all__ = ["race"]

_MAX_VARIANTS = 16
_PLOT_SUFFIXES = (".svg", ".png")
_PROGRESS_CHARS = 60
_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("models", nargs=-1, required=True, type=_FILE, metavar="MODEL.tflite…")
@click.option("--golden", type=_FILE, help="Golden samples (.npz) to compare outputs with.")
@click.option("--evaluation", type=_FILE, help="Labelled samples (.npz: x, y) for accuracy.")
@policy_options
@click.option(
    "--budget",
    "budget_s",
    type=click.FloatRange(min=0.5, max=3600),
    metavar="SECONDS",
    default=20.0,
    show_default=True,
    help="How long the race takes at most.",
)
@click.option("--threads", multiple=True, type=click.IntRange(1, 64), help="May be given several times.")
@click.option("--delegates", multiple=True, type=_FILE, metavar="FILE.toml", help="More delegates; may be repeated.")
@click.option("--power-command", metavar="'PROGRAM ARG…'", help="A program that prints the power in watts when run.")
@click.option(
    "--power-period",
    "power_period_s",
    type=click.FloatRange(0.02, 3600),
    default=1.0,
    show_default=True,
    help="Seconds after which its figure is a new one.",
)
@config_option
@click.option("--output", type=_FILE, metavar="FILE.json", help="Also write what --json prints to a file.")
@click.option("--plot", type=_FILE, metavar="FILE.svg|.png", help="Also draw it; needs the extra [plot].")
@as_json
def race(
    models: tuple[Path, ...],
    golden: Path | None,
    evaluation: Path | None,
    budget_s: float,
    threads: tuple[int, ...],
    delegates: tuple[Path, ...],
    power_command: str | None,
    power_period_s: float,
    config_path: Path | None,
    output: Path | None,
    plot: Path | None,
    json_output: bool,
    **options: Any,  # noqa: ANN401 - the policy's options
) -> None:
    """Race every way of running MODEL.tflite on this board. Several files race as variants of one model.

    Delegate files and the power meter are those of agent.toml where there is one; --delegates adds files, and
    --power-command takes the meter's place. Progress goes to standard error. Ends with 0 when something was placed, 65
    when nothing can run the model or nothing meets the policy (the table, the JSON and the plot are made all the same),
    78 when no runtime or no matplotlib is installed.

    \b
    Examples:
      regatta-agent race mobilenet.tflite
      regatta-agent race float32.tflite int8.tflite --evaluation eval.npz --accuracy-drop 1% --plot race.png
      regatta-agent race model.tflite --objective latency-p99 --max-memory 128MiB --json --output race.json
      regatta-agent race model.tflite --delegates mynpu.toml --power-command 'read-meter --watts' --power-period 0.1
    """
    from regatta_agent.cli.why import print_race
    from regatta_agent.config import load_config
    from regatta_protocol.errors import Rejected
    from regatta_runtimes.choice.report import race_document
    from regatta_runtimes.race.run import RaceSpec, RaceVariant, run_race

    _check_inputs(models, golden, evaluation, *delegates)
    config = load_config(config_path)
    _check_outputs(output, plot)
    names = _names(models)
    spec = RaceSpec(
        model=names[0],
        version=1,
        variants=tuple(
            RaceVariant(name=name, path=str(path.absolute())) for name, path in zip(names, models, strict=True)
        ),
        golden=str(golden.absolute()) if golden is not None else None,
        evaluation=str(evaluation.absolute()) if evaluation is not None else None,
        policy=given_policy(options),
        threads=threads or None,
        budget_s=budget_s,
        sysroot=str(config.sysroot),
        delegate_files=tuple(str(path.absolute()) for path in (*config.delegate_files, *delegates)),
        power=config.power if power_command is None else _meter(power_command, power_period_s),
    )
    with _progress(budget_s) as tell:
        report = run_race(spec, tell)
    document = race_document(report)
    if output is not None:
        _write_json(output, document)
    if plot is not None:
        from regatta_agent.cli.raceplot import draw_race

        draw_race(report, plot)
    if json_output:
        print_json(document)
    else:
        print_race(report)
    if report.placement is None:
        raise Rejected("nothing was placed: no candidate can run the model here and meet the policy (reasons above)")


def _check_inputs(models: tuple[Path, ...], *samples: Path | None) -> None:
    from regatta_protocol.errors import Misuse, Rejected
    from regatta_runtimes.runtime import is_model

    if len(models) > _MAX_VARIANTS:
        raise Misuse(f"{len(models)} files are over the limit of {_MAX_VARIANTS} variants in one race")
    for path in (*models, *samples):
        if path is not None and not path.is_file():
            raise Rejected(f"{path} is not a file: give the path of a model, sample or delegate file")
    for path in models:
        if not is_model(path):
            raise Rejected(f"{path} begins neither as a TFLite nor as an ONNX model does: give a .tflite or .onnx file")


def _meter(command: str, period_s: float) -> PowerSettings:
    """Return the settings of a meter that is a program.

    Raises:
        click.UsageError: when the text is no command.
    """
    import shlex

    from regatta_protocol.errors import Rejected
    from regatta_protocol.plain import read
    from regatta_runtimes.power.settings import PowerSettings

    try:
        return read(PowerSettings, {"command": {"run": shlex.split(command), "period_s": period_s}})
    except (ValueError, Rejected) as err:
        raise click.UsageError(f"--power-command {command!r} is no program with arguments") from err


def _check_outputs(output: Path | None, plot: Path | None) -> None:
    """Refuse before the race what could not be written after it."""
    from regatta_protocol.errors import Misuse

    for path in (output, plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise click.UsageError(f"there is no folder {path.absolute().parent} to write {path.name} to")
        if path is not None and path.is_dir():
            raise click.UsageError(f"{path} is a folder: give a file to write to")
    if plot is None:
        return
    if plot.suffix.lower() not in _PLOT_SUFFIXES:
        raise click.UsageError(f"--plot {plot} must end in {' or '.join(_PLOT_SUFFIXES)}")
    if find_spec("matplotlib") is None:
        raise Misuse("--plot needs matplotlib, which is not installed: pip install 'regatta-edge[plot]'")


def _write_json(path: Path, document: dict[str, Any]) -> None:
    import json

    from regatta_protocol.durable import write_durably

    data = (json.dumps(document, indent=2) + "\n").encode()
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_bytes(data)  # /dev/stdout, a pipe: written to, for a rename would take its place
    else:
        write_durably(path.absolute(), data, 0o644)


@contextmanager
def _progress(budget_s: float) -> Iterator[Callable[[str], None]]:
    """Yield what is told a line about each step: a bar on a terminal, lines elsewhere, always on standard error.

    The bar shows how much of the budget is used, for how many steps a race has comes out as it goes on.
    """
    if not sys.stderr.isatty():
        yield lambda line: click.echo(line, err=True)
        return
    begun = time.monotonic()
    length = round(budget_s * 10)
    last = ""
    bar: ProgressBar[int]
    with click.progressbar(
        length=length,
        label="racing",
        show_eta=False,
        show_percent=False,
        item_show_func=lambda _item: last[:_PROGRESS_CHARS],
        file=sys.stderr,
    ) as bar:

        def tell(line: str) -> None:
            nonlocal last
            last = line
            bar.update(max(0, min(length, round((time.monotonic() - begun) * 10)) - bar.pos))
            bar.render_progress()

        yield tell
        last = ""
        bar.update(length - bar.pos)


def _names(models: tuple[Path, ...]) -> list[str]:
    """Return a variant name a file, of the characters that manifests allow; equal ones get a number."""
    names: list[str] = []
    for number, path in enumerate(models, 1):
        letters = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in path.stem.lower())
        name = letters.lstrip("._-")[:50] or "model"
        names.append(f"{name}-{number}" if name in names else name)
    return names
