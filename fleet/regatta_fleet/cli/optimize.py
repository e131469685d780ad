"""`regatta model optimize` and `recipe`: variants of a float model, by their names or by a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regatta_fleet.cli import model_tables, output
from regatta_fleet.cli.connection import examples, home_option, json_option, open_client, url_option
from regatta_fleet.cli.described import processing_option, read_described
from regatta_protocol.ids import parse_model_name
from regatta_protocol.quantity import parse_size_bytes
from regatta_runtimes.choice.policy_options import given_policy, policy_options

if TYPE_CHECKING:
    from regatta_fleet.models.bundle_source import BundleSource
    from regatta_fleet.optimize.report import OptimizeReport

__all__ = ["optimize", "recipe"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(
    epilog=examples(
        "regatta model optimize digits.tflite --data digits.npz --output build/digits",
        "regatta model optimize vww.tflite --data tune.npz --evaluation test.npz --output build/vww --accuracy-drop 1%",
        "regatta model optimize kws.tflite --data kws.npz --output build/kws --variants int8,mixed",
        "regatta model optimize kws.tflite --data kws.npz --output build/kws --recipe recipe.yaml",
        "regatta model optimize net.py:trained --data pictures.npz --output build/net  # a PyTorch module",
        "regatta model optimize digits.tflite --data digits.npz --output build/digits --name digits  # and push it",
    )
)
@click.argument("source", required=False, metavar="[MODEL]")
@click.option("--data", type=_FILE, help="Samples: .npz with x, and y where labelled.")
@click.option(
    "--output",
    "output_folder",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The bundle's folder.",
)
@click.option("--recipe", "recipe_file", type=_FILE, help="Steps to follow, in place of --variants.")
@click.option("--evaluation", type=_FILE, help="Labelled samples to judge by [default: half of --data].")
@click.option("--labels", type=_FILE, help="Labels, one a line, or INDEX LABEL a line.")
@click.option("--mean", type=float, help="Of pictures: the model's input is (pixel - mean) * scale.")
@click.option("--scale", type=float, help="See --mean.")
@processing_option
@click.option(
    "--variants",
    default="standard",
    show_default=True,
    metavar="SET|NAMES",
    help="quick, standard, all, trained, or names with commas between: int8, int8-unfolded, int8-float-stem, "
    "int8-weights, int4-weights, float16, int8-dynamic, int8-pruned, mixed, int8-distilled, int8-trained, "
    "int4-trained, sparse.",
)
@policy_options
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where a recipe's finished steps are kept [default: ~/.cache/regatta/optimize].",
)
@click.option("--cache-limit", default="2GiB", show_default=True, metavar="SIZE", help="Those used last stay.")
@click.option("--replace", is_flag=True, help="Put it in place of the bundle that --output holds.")
@click.option("--name", help="Also push the bundle to the fleet, as this model's next version.")
@home_option
@url_option
@json_option
@click.pass_context
def optimize(
    context: click.Context,
    /,
    source: str | None,
    data: Path | None,
    output_folder: Path,
    recipe_file: Path | None,
    evaluation: Path | None,
    labels: Path | None,
    mean: float | None,
    scale: float | None,
    processing: Path | None,
    variants: str,
    cache: Path | None,
    cache_limit: str,
    replace: bool,
    name: str | None,
    home: Path | None,
    url: str | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - the policy's options
) -> None:
    """Make smaller and faster variants of a float model, and keep those that are accurate enough.

    MODEL is a .tflite; or a SavedModel's folder or a Keras file (extra [tensorflow]), an .onnx (extras [train] and
    [onnx-import]), or MODULE:FACTORY or FILE.py:FACTORY, a function that returns a PyTorch module (extra [train]).

    Writes a bundle and its report to --output: the float original and the variants, each measured beside the original
    on samples that did not tune it. Variants over the accuracy budget are left out, with the reason in the report.

    The quick set is int8 and int8-pruned (filters taken out, refitted); standard adds int8-weights and float16, which
    are smaller than float and as accurate, int8-float-stem, where a convolution is over a single channel, and
    int8-unfolded, where int8 had a stride folded into channels; all adds int4-weights, int8-dynamic and mixed (a
    precision for each layer, the fewest bytes within the budget), which are smaller yet and often slower. The trained
    set adds int8-distilled (filters pruned, the rest trained on the original's answers), int8-trained, int4-trained and
    sparse: extra [train], and minutes.

    With --recipe its steps are followed. Finished steps are kept by the digest of all that they depend on: after an
    interruption the same command goes on where it was.
    """
    from regatta_fleet.cli.model import push_bundle
    from regatta_fleet.models.bundle import Bundle
    from regatta_fleet.models.bundle_source import BundleSource

    known = None if name is None else parse_model_name(name)
    given = BundleSource(
        labels=labels,
        evaluation=evaluation,
        mean=mean,
        scale=scale,
        policy=given_policy(options),
        processing=read_described(processing, mean, scale),
    )
    if recipe_file is not None:
        if context.get_parameter_source("variants") == click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError("--recipe says which variants are made: give no --variants")
        from regatta_fleet.optimize.recipe.document import read_recipe
        from regatta_fleet.optimize.recipe.run import RecipeRun, optimize_by_recipe

        run = RecipeRun(output_folder, source, data, given, cache, parse_size_bytes(cache_limit), replace)
        with output.steps() as progress:
            report = optimize_by_recipe(read_recipe(recipe_file), run, progress)
    else:
        if source is None or data is None:
            raise click.UsageError("give MODEL and --data, or a --recipe that has both")
        report = _by_names(source, data, output_folder, given, variants, replace)
    manifest = None
    if known is not None:
        with open_client(home, url) as client:
            manifest = push_bundle(client, known, Bundle.open(output_folder))
    if as_json:
        output.print_json(
            report if manifest is None else {"report": output.plain(report), "manifest": output.plain(manifest)}
        )
        return
    output.print_table(model_tables.optimized(report))
    if manifest is not None:
        output.line(f"pushed {manifest.ref}", "good")
    else:
        output.hint(f"push it: `regatta model push {output_folder} --name NAME`")


def _by_names(
    source: str, data: Path, output_folder: Path, given: BundleSource, variants: str, replace: bool
) -> OptimizeReport:
    import tempfile

    from regatta_fleet.optimize.pipeline import optimize as run
    from regatta_fleet.optimize.sources.kinds import name_source
    from regatta_fleet.optimize.sources.resolve import resolve_source
    from regatta_fleet.optimize.trials import parse_variants

    chosen = parse_variants(variants)
    with tempfile.TemporaryDirectory(prefix="regatta-source-") as scratch, output.steps() as progress:
        model = Path(source)
        if name_source(source).kind != "tflite":
            progress(f"converting {source}", 0.0)
            model = Path(scratch) / f"{Path(source).stem.replace(':', '-')}.tflite"
            resolve_source(source, model, samples=data)
        return run(model, data, output_folder, given, variants=chosen, progress=progress, replace=replace)


@click.command(
    epilog=examples(
        "regatta model recipe --example > recipe.yaml",
        "regatta model recipe --check recipe.yaml",
        "regatta model recipe --schema > recipe.schema.json",
    )
)
@click.option("--schema", "what", flag_value="schema", help="Print the JSON schema of recipes.")
@click.option("--example", "what", flag_value="example", help="Print a recipe that can be run.")
@click.option("--check", "file", type=_FILE, metavar="RECIPE", help="Check a recipe, with its hooks.")
@json_option
def recipe(what: str | None, file: Path | None, as_json: bool) -> None:
    """Show what recipes look like, or check one."""
    if (what is None) == (file is None):
        raise click.UsageError("give one of --schema, --example and --check RECIPE")
    if what == "schema":
        from regatta_fleet.optimize.recipe.models import recipe_schema

        click.echo(json.dumps(recipe_schema(), indent=2))
    elif what == "example":
        from regatta_fleet.optimize.recipe.document import example_recipe

        click.echo(example_recipe(), nl=False)
    elif file is not None:
        from regatta_fleet.optimize.recipe.document import read_recipe
        from regatta_fleet.optimize.recipe.hooks import Hooks

        found = read_recipe(file)
        hooks: tuple[str, ...] = ()
        if found.hooks is not None:
            limits = found.recipe.limits
            hooks = Hooks(found.hooks, limits.time, limits.memory).defined()
        if as_json:
            output.print_json({"recipe": output.plain(found.recipe), "hooks": list(hooks)})
            return
        output.line(f"{file.name} is right: {' → '.join(step.step for step in found.recipe.steps)}", "good")
        output.line(f"  hooks: {', '.join(hooks) or 'none'}")
