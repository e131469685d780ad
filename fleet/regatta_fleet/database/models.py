"""The registry: versions of models, each with its signed manifest's exact text."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, func, insert, select, update

from regatta_fleet.database.tables import device_models, model_versions
from regatta_fleet.schemas import ModelSummary
from regatta_protocol.codec import decode
from regatta_protocol.ids import Digest, ModelName, ModelRef
from regatta_protocol.manifest import MAX_MANIFEST_BYTES, Manifest

__all__ = [
    "VersionRow",
    "add_version",
    "fleet_accuracy",
    "get_version",
    "latest_version",
    "list_models",
    "list_unsigned",
    "mark_signed",
]


@dataclass(frozen=True)
class VersionRow:
    manifest: Manifest
    manifest_digest: Digest
    created_at: float


def latest_version(tx: Connection, name: ModelName) -> int:
    """Return the highest number that was given to a version of the model, signed or not; 0 when none was."""
    found = tx.execute(select(func.max(model_versions.c.version)).where(model_versions.c.name == name)).scalar()
    return int(found or 0)


def add_version(tx: Connection, manifest: Manifest, text: str, digest: Digest, now: float) -> None:
    """Store a version that is not signed yet."""
    tx.execute(
        insert(model_versions).values(
            name=manifest.name,
            version=manifest.version,
            created_at=now,
            manifest_digest=digest,
            manifest=text,
            signed=False,
        )
    )


def get_version(tx: Connection, ref: ModelRef) -> VersionRow | None:
    """Return a signed version, or None."""
    row = tx.execute(select(model_versions).where(_is(ref), model_versions.c.signed)).one_or_none()
    if row is None:
        return None
    return VersionRow(
        decode(Manifest, row.manifest.encode(), MAX_MANIFEST_BYTES), Digest(row.manifest_digest), row.created_at
    )


def list_unsigned(tx: Connection) -> tuple[bytes, ...]:
    """Return the manifests that are stored and not signed, by name and version."""
    query = select(model_versions.c.manifest).where(~model_versions.c.signed)
    ordered = query.order_by(model_versions.c.name, model_versions.c.version)
    return tuple(text.encode() for text in tx.execute(ordered).scalars())


def mark_signed(tx: Connection, ref: ModelRef) -> None:
    """Let the version be seen."""
    tx.execute(update(model_versions).where(_is(ref)).values(signed=True))


def list_models(tx: Connection, name: ModelName | None = None) -> tuple[ModelSummary, ...]:
    """Return every model (or only `name`), by name."""
    query = (
        select(model_versions.c.name, model_versions.c.version)
        .where(model_versions.c.signed)
        .order_by(model_versions.c.name, model_versions.c.version)
    )
    serving = (
        select(device_models.c.name, func.count(device_models.c.device.distinct()).label("devices"))
        .where(device_models.c.serving)
        .group_by(device_models.c.name)
    )
    if name is not None:
        query = query.where(model_versions.c.name == name)
        serving = serving.where(device_models.c.name == name)
    counts = {row.name: row.devices for row in tx.execute(serving)}
    versions: dict[ModelName, list[int]] = {}
    for row in tx.execute(query):
        versions.setdefault(row.name, []).append(row.version)
    return tuple(
        ModelSummary(name=each, versions=tuple(numbers), devices_serving=counts.get(each, 0))
        for each, numbers in versions.items()
    )


def fleet_accuracy(manifest: Manifest) -> float | None:
    """Return the best accuracy in [0, 1] that the fleet measured of the version's variants, or None."""
    measured = [variant.accuracy.value for variant in manifest.variants if variant.accuracy is not None]
    return max(measured, default=None)


def _is(ref: ModelRef) -> ColumnElement[bool]:
    return (model_versions.c.name == ref.name) & (model_versions.c.version == ref.version)
