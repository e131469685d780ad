"""`regatta model`: optimize a float model, push a version, list and show what the fleet has."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regatta_fleet import figures
from regatta_fleet.cli import device_tables, model_tables, output
from regatta_fleet.cli.connection import connected, examples, json_option
from regatta_fleet.cli.described import processing_option, read_described
from regatta_fleet.cli.optimize import optimize, recipe
from regatta_fleet.cli.overlay import overlay_options
from regatta_fleet.cli.search import search
from regatta_fleet.client import FleetClient
from regatta_fleet.schemas import BundleDraft
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import parse_model_name, parse_model_ref
from regatta_protocol.manifest import Manifest
from regatta_runtimes.choice.limits import limits_in_words
from regatta_runtimes.choice.objective import OBJECTIVES
from regatta_runtimes.choice.policy_options import given_policy, policy_options

if TYPE_CHECKING:
    from regatta_fleet.models.bundle import Bundle
    from regatta_fleet.models.overlay import OverlaySource

__all__ = ["model", "push_bundle"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def model() -> None:
    """Optimize, search, push, list and show models."""


model.add_command(optimize)
model.add_command(recipe)
model.add_command(search)


@model.command(
    epilog=examples(
        "regatta model push mobilenet.tflite --name mobilenet --labels imagenet.txt",
        "regatta model push net.tflite --name net --variant net.onnx",
        "regatta model push int8.tflite --name cats --variant int8_edgetpu.tflite --evaluation cats.npz",
        "regatta model push float.tflite --name vww --mean 127.5 --scale 0.00784314 --objective energy",
        "regatta model push kws.tflite --name kws --processing kws.toml",
        "regatta model push build/digits --name digits",
        "regatta model push cats.tflite --name cats --overlay dpu --bitstream dpu.bit.bin "
        "--device-tree-overlay dpu.dtbo --overlay-delegate mydpu",
    )
)
@click.argument("source", type=click.Path(exists=True, path_type=Path), metavar="MODEL|BUNDLE_DIR")
@click.option("--name", required=True, help="The model's name; the server gives the version.")
@click.option("--labels", type=_FILE, help="Labels, one a line, or INDEX LABEL a line.")
@click.option("--evaluation", type=_FILE, help="Labelled samples: .npz with x and y. Devices measure accuracy on it.")
@click.option("--variant", "variants", type=_FILE, multiple=True, help="Another file of the same model; may repeat.")
@click.option("--mean", type=float, help="Of pictures: the model's input is (pixel - mean) * scale.")
@click.option("--scale", type=float, help="See --mean.")
@processing_option
@policy_options
@overlay_options
@json_option
@connected
def push(
    client: FleetClient,
    /,
    source: Path,
    name: str,
    labels: Path | None,
    evaluation: Path | None,
    variants: tuple[Path, ...],
    mean: float | None,
    scale: float | None,
    processing: Path | None,
    overlay: OverlaySource | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - the policy's options
) -> None:
    """Store a model file (.tflite or .onnx), or a bundle that `optimize` made, as the next version.

    A bare model file is inspected, run on reference kernels for its golden samples and measured, all here. Only files
    that the server lacks are uploaded: after an interruption the same command goes on with the next file.
    """
    from regatta_fleet.models.bare_model import bundle_from_model
    from regatta_fleet.models.bundle import Bundle
    from regatta_fleet.models.bundle_source import BundleSource

    known = parse_model_name(name)
    policy = given_policy(options).model_dump(exclude_unset=True)
    if source.is_dir():
        if any((labels, evaluation, variants, overlay, processing)) or mean is not None or scale is not None:
            raise click.UsageError("a bundle has its labels, evaluation set and input already: give no such option")
        manifest = push_bundle(client, known, Bundle.open(source), policy)
    else:
        given = BundleSource(
            labels=labels,
            evaluation=evaluation,
            variants=variants,
            mean=mean,
            scale=scale,
            overlay=overlay,
            processing=read_described(processing, mean, scale),
        )
        with tempfile.TemporaryDirectory(prefix="regatta-push-") as scratch:
            with output.steps() as progress:
                bundle = bundle_from_model(source, Path(scratch) / "bundle", given, progress=progress)
            manifest = push_bundle(client, known, bundle, policy)
    if as_json:
        output.print_json(manifest)
        return
    output.line(f"pushed {manifest.ref}", "good")
    output.print_table(model_tables.variants(manifest))
    output.hint(f"send it to devices: `regatta rollout start {manifest.ref} --to all`")


@model.command("list", epilog=examples("regatta model list", "regatta model list --json"))
@json_option
@connected
def list_models(client: FleetClient, as_json: bool) -> None:
    """List the models with their versions."""
    found = client.models()
    if as_json:
        output.print_json(found)
    else:
        output.print_table(model_tables.models(found))


@model.command(epilog=examples("regatta model show digits", "regatta model show digits:2 --json"))
@click.argument("name", metavar="NAME[:V]")
@json_option
@connected
def show(client: FleetClient, name: str, as_json: bool) -> None:
    """Show a version (the newest, when none is named): variants, lineage, and what devices made of it."""
    if ":" not in name:
        summary = client.model(parse_model_name(name))
        if not summary.versions:
            raise Rejected(f"model {name} has no version yet: `regatta model push` stores one")
        name = f"{name}:{max(summary.versions)}"
    detail = client.version(parse_model_ref(name))
    if as_json:
        output.print_json(detail)
        return
    manifest = detail.manifest
    asked = manifest.policy
    facts = (
        ("created", manifest.created_at.replace("T", " ").replace("+00:00", "Z")),
        ("made of", manifest.source or "unknown"),
        ("lineage", " → ".join(manifest.lineage) or "unknown"),
        ("task", manifest.task),
        ("input", _input_words(manifest)),
        ("result", "not described" if manifest.result is None else manifest.result["kind"]),
        ("overlay", _overlay_words(manifest)),
        ("evaluation", figures.size(manifest.evaluation.size_bytes) if manifest.evaluation else "none"),
        (
            "policy",
            ", ".join((OBJECTIVES.get(asked.objective, asked.objective), *limits_in_words(asked))),
        ),
    )
    output.line(f"Model {manifest.ref}")
    for label, value in facts:
        output.line(f"  {label:<11} {value}")
    output.line()
    output.print_table(model_tables.variants(manifest))
    output.line()
    if manifest.history:
        output.print_table(model_tables.lineage(manifest))
        output.line()
    output.print_table(device_tables.model_devices(detail))


def push_bundle(client: FleetClient, name: str, bundle: Bundle, policy: dict[str, object] | None = None) -> Manifest:
    """Upload what the server lacks of the bundle and create the next version; returns its manifest."""
    refs = bundle.files()
    missing = [ref for ref in refs if not client.has_blob(ref.digest)]
    total = sum(ref.size_bytes for ref in missing)
    if missing:
        with output.meter(f"uploading {len(missing)} of {len(refs)} files", total) as meter:
            for ref in missing:
                client.upload_blob(ref, bundle.path_of(ref), meter.advance)
    draft = bundle.draft
    if policy:
        draft = BundleDraft.model_validate(
            {**draft.model_dump(), "policy": {**draft.policy.model_dump(), **policy}},
        )
    return client.create_version(parse_model_name(name), draft)


def _overlay_words(manifest: Manifest) -> str:
    overlay = next((variant.overlay for variant in manifest.variants if variant.overlay is not None), None)
    if overlay is None:
        return "none"
    tree = "" if overlay.dtbo is None else f", device tree {figures.size(overlay.dtbo.size_bytes)}"
    return f"{overlay.name} for {overlay.delegate}, bitstream {figures.size(overlay.bitstream.size_bytes)}{tree}"


def _input_words(manifest: Manifest) -> str:
    picture, sound = manifest.processing.image, manifest.processing.audio
    if sound is not None:
        each = sound.features_per_frame
        return f"sound at {sound.sample_rate_hz} Hz, {sound.frames} frames of {each} ({sound.features})"
    if picture is not None:
        return (
            f"picture {picture.height} × {picture.width} × {picture.channels}, "
            f"(pixel − {picture.mean:g}) · {picture.scale:.6g}"
        )
    specs = manifest.variants[0].inputs
    return ", ".join(f"{spec.dtype} {list(spec.shape)}" for spec in specs) or "unknown"
