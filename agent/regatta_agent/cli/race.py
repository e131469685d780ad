"""`regatta-agent race MODEL.tflite`: the race alone, for any file, without a fleet."""

from __future__ import annotations

from pathlib import Path

import click

from regatta_agent.cli.options import as_json, print_json

__all__ = ["race"]

_MAX_VARIANTS = 16


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="MODEL.tflite…")
@click.option("--golden", type=click.Path(path_type=Path), help="Golden samples (.npz) to compare outputs with.")
@click.option("--evaluation", type=click.Path(path_type=Path), help="Labelled samples (.npz: x, y) for accuracy.")
@click.option("--budget", "budget_s", type=click.FloatRange(min=0.5, max=3600), default=20.0, show_default=True)
@click.option("--threads", multiple=True, type=click.IntRange(1, 64), help="May be given several times.")
@as_json
def race(
    models: tuple[Path, ...],
    golden: Path | None,
    evaluation: Path | None,
    budget_s: float,
    threads: tuple[int, ...],
    json_output: bool,
) -> None:
    """Race every way of running MODEL.tflite on this board. Several files race as variants of one model.

    \b
    Examples:
      regatta-agent race mobilenet.tflite
      regatta-agent race float32.tflite int8.tflite --evaluation eval.npz --json
    """
    from regatta_agent.cli.status import print_race
    from regatta_protocol.errors import Misuse, Rejected
    from regatta_runtimes.race import RaceSpec, RaceVariant, run_race

    if len(models) > _MAX_VARIANTS:
        raise Misuse(f"{len(models)} files are over the limit of {_MAX_VARIANTS} variants in one race")
    for path in (*models, golden, evaluation):
        if path is not None and not path.is_file():
            raise Rejected(f"{path} is not a file: give the path of a model or sample file")
    names = _names(models)
    spec = RaceSpec(
        model=names[0],
        version=1,
        variants=tuple(
            RaceVariant(name=name, path=str(path.absolute())) for name, path in zip(names, models, strict=True)
        ),
        golden=str(golden.absolute()) if golden is not None else None,
        evaluation=str(evaluation.absolute()) if evaluation is not None else None,
        threads=threads or None,
        budget_s=budget_s,
    )
    report = run_race(spec, (lambda _line: None) if json_output else (lambda line: click.echo(line, err=True)))
    if json_output:
        print_json(report.model_dump(mode="json"))
    else:
        print_race(report)
    if report.placement is None:
        raise Rejected(f"no candidate can run it here: {report.reason}")


def _names(models: tuple[Path, ...]) -> list[str]:
    """Return a variant name a file, of the characters that manifests allow; equal ones get a number."""
    names: list[str] = []
    for number, path in enumerate(models, 1):
        letters = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in path.stem.lower())
        name = letters.lstrip("._-")[:50] or "model"
        names.append(f"{name}-{number}" if name in names else name)
    return names
