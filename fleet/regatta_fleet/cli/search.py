"""`regatta model search`: an architecture search, from labelled samples to a bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regatta_fleet.cli import model_tables, output
from regatta_fleet.cli.connection import examples, home_option, json_option, open_client, url_option
from regatta_protocol.ids import parse_device_id
from regatta_protocol.quantity import parse_latency_us
from regatta_runtimes.choice.policy_options import given_policy, policy_options

if TYPE_CHECKING:
    from regatta_fleet.optimize.recipe.models import SearchStep

__all__ = ["search"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_TABLE_AGE_S = 7 * 86_400.0  # a device's table is measured anew after a week: drivers and runtimes change


@click.command(
    epilog=examples(
        "regatta model search --data digits.npz --output build/found",
        "regatta model search --data digits.npz --output build/found --strategy darts --latency-target 20us",
        "regatta model search --data kws.npz --output build/kws --space space.yaml --latency-from porch",
        "regatta model search --data digits.npz --output build/found --seeds 5  # and random search beside",
    )
)
@click.option("--data", type=_FILE, required=True, help="Labelled samples: .npz with x [n, h, w, c] and y.")
@click.option(
    "--output",
    "output_folder",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The bundle's folder.",
)
@click.option("--space", type=_FILE, help="A search space, YAML [default: a small one].")
@click.option(
    "--strategy",
    type=click.Choice(["evolution", "reinforce", "darts", "darts2", "random"]),
    default="evolution",
    show_default=True,
    help="darts2 is DARTS in second order.",
)
@click.option("--budget", type=click.IntRange(10), help="Training steps that the search may take [default: 2000].")
@click.option("--candidate-steps", type=click.IntRange(1), help="Training steps of a candidate [default: 40].")
@click.option("--final-steps", type=click.IntRange(1), help="Training steps of the best one [default: 400].")
@click.option("--latency-target", metavar="LATENCY", help="Slower ones are marked down [default: the space's median].")
@click.option("--latency-from", metavar="DEVICE", help="Have this device of the fleet measure the layers.")
@click.option("--latency-table", type=_FILE, help="A table that --latency-from made before.")
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="The same one finds the same."
)
@click.option(
    "--seeds",
    type=click.IntRange(1, 32),
    default=1,
    show_default=True,
    help="Above 1, so many searches, and random search at the same budgets beside.",
)
@click.option("--evaluation", type=_FILE, help="Labelled samples to judge by [default: half of --data].")
@click.option("--labels", type=_FILE, help="Labels, one a line, or INDEX LABEL a line.")
@policy_options
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), help="As of `optimize --recipe`.")
@click.option("--replace", is_flag=True, help="Put it in place of the bundle that --output holds.")
@home_option
@url_option
@json_option
def search(
    data: Path,
    output_folder: Path,
    space: Path | None,
    strategy: str,
    budget: int | None,
    candidate_steps: int | None,
    final_steps: int | None,
    latency_target: str | None,
    latency_from: str | None,
    latency_table: Path | None,
    seed: int,
    seeds: int,
    evaluation: Path | None,
    labels: Path | None,
    cache: Path | None,
    replace: bool,
    home: Path | None,
    url: str | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - the policy's options
) -> None:
    """Search for a network that is accurate and fast, train the best, and write it as a bundle.

    Candidates are trained for some steps and scored on samples held back; their latency is estimated from a table of
    layers, timed on this machine or, with --latency-from, raced by a device of the fleet. The bundle holds the best
    one in float and int8; search.md, search.json and search.svg beside its report tell every candidate and the Pareto
    front. Needs the [train] extra.
    """
    from regatta_fleet.models.bundle_source import BundleSource
    from regatta_fleet.optimize.recipe.document import RecipeFile
    from regatta_fleet.optimize.recipe.models import Limits, QuantizeStep, Recipe, SearchStep
    from regatta_fleet.optimize.recipe.run import RecipeRun, optimize_by_recipe

    if latency_from is not None and latency_table is not None:
        raise click.UsageError("give one of --latency-from and --latency-table")
    given = {
        "space": None if space is None else str(space.absolute()),
        "strategy": strategy,
        "budget": budget,
        "candidate_steps": candidate_steps,
        "final_steps": final_steps,
        "seeds": seeds,
        "latency_target": None if latency_target is None else parse_latency_us(latency_target),
        "latency_table": None if latency_table is None else str(latency_table.absolute()),
    }
    step = SearchStep.model_validate({name: value for name, value in given.items() if value is not None})
    with output.steps() as progress:
        if latency_from is not None:
            table = _measured(latency_from, step, data, home, url, progress)
            step = step.model_copy(update={"latency_table": str(table)})
        limits = Limits(time=24 * 3600.0)
        recipe = Recipe(recipe=1, seed=seed, limits=limits, steps=(step, QuantizeStep(schemes=("int8",))))
        source = BundleSource(labels=labels, evaluation=evaluation, policy=given_policy(options))
        run = RecipeRun(output_folder, None, data, source, cache, replace=replace)
        report = optimize_by_recipe(RecipeFile(Path("search"), recipe), run, progress)
    if as_json:
        output.print_json(report)
        return
    output.print_table(model_tables.optimized(report))
    output.hint(f"what was tried: {output_folder / 'search.md'}")
    output.hint(f"push it: `regatta model push {output_folder} --name NAME`")


def _measured(
    name: str, step: SearchStep, data: Path, home: Path | None, url: str | None, progress: output.Progress
) -> Path:
    """Return the file of the device's latency table, measured now where it is old or lacks a layer."""
    from regatta_fleet.optimize.nas.fleet_table import device_table
    from regatta_fleet.optimize.nas.latency import read_table, write_table
    from regatta_fleet.optimize.nas.run import layers_of, require_torch, tables_folder
    from regatta_fleet.optimize.nas.space import SMALL, read_space

    require_torch()  # before a device is troubled
    device = parse_device_id(name)
    layers = layers_of(SMALL if step.space == "small" else read_space(Path(step.space)), data)
    path = tables_folder() / f"device-{device}.json"
    known = None
    if path.is_file() and time.time() - path.stat().st_mtime < _TABLE_AGE_S:
        known = read_table(path)
    with open_client(home, url) as client:
        table = device_table(client, device, layers, known, progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    if known != table:
        write_table(path, table)
    return path
