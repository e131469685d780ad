"""Pushing a bundle: from uploaded files to a signed version.

Order: files checked, manifest stored as a blob, the row in the database with its exact text (unsigned: nobody sees
it), signed as a target, the row marked as signed. A signed text can never be replaced by another, so a server that
is killed in between signs the very text of the row at its next start (`complete`).
Only the controller's thread calls `push`, so numbers are given once.
"""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import Protocol

from regatta_fleet.database import models
from regatta_fleet.database.engine import Database
from regatta_fleet.database.events import add_event
from regatta_fleet.models.blobs import BlobStore
from regatta_fleet.schemas import BundleDraft
from regatta_protocol.codec import decode, encode
from regatta_protocol.fitting import check_processing
from regatta_protocol.ids import ModelName
from regatta_protocol.manifest import MAX_MANIFEST_BYTES, Manifest, target_path
from regatta_protocol.wire import Wire

__all__ = ["Metadata", "Registry"]


class Metadata(Protocol):
    """The signed metadata (regatta_provisioning.repository.MetadataRepository)."""

    def add_target(self, path: str, data: bytes) -> None:
        """Sign `data` as the content of `path`."""

    def refresh_online(self) -> tuple[str, ...]:
        """Sign again what expires soon; returns what an operator must do."""

    def files_for(self, target: str, root_version: int) -> dict[str, str]:
        """Return the metadata files that a device needs to verify `target`."""


class Registry:
    """Versions of models."""

    def __init__(self, database: Database, blobs: BlobStore, metadata: Metadata) -> None:
        self._database = database
        self._blobs = blobs
        self._metadata = metadata

    def push(self, name: ModelName, draft: BundleDraft, now: float) -> Manifest:
        """Store the draft as the model's next version.

        Raises:
            Rejected: when a file is missing or of another size, two variants have one name, or the processing does not
                fit one of them.
            StorageFull: when the disk is full.
        """
        with self._database.read() as tx:
            version = models.latest_version(tx, name) + 1
        created = datetime.datetime.fromtimestamp(now, datetime.timezone.utc).isoformat(timespec="seconds")
        draft_fields = _Fields.model_validate(draft.model_dump(exclude_none=True))
        text = encode(
            draft_fields.model_copy(
                update={"schema_version": 1, "name": name, "version": version, "created_at": created}
            ),
            MAX_MANIFEST_BYTES,
        )
        manifest = decode(Manifest, text, MAX_MANIFEST_BYTES)
        described = replace(manifest.processing, image=None)  # which may be a guess by another variant
        for variant in manifest.variants:
            check_processing(described, variant.inputs, variant.outputs)
        self._blobs.require(manifest.files())
        blob = self._blobs.put(text)
        with self._database.write() as tx:
            models.add_version(tx, manifest, text.decode(), blob.digest, now)
        self._sign(manifest, text, now)
        return manifest

    def complete(self, now: float) -> None:
        """Sign what a server that was killed had not signed yet. Call before devices are served."""
        with self._database.read() as tx:
            unsigned = models.list_unsigned(tx)
        for text in unsigned:
            self._sign(decode(Manifest, text, MAX_MANIFEST_BYTES), text, now)

    def _sign(self, manifest: Manifest, text: bytes, now: float) -> None:
        self._metadata.add_target(target_path(manifest.ref), text)
        with self._database.write() as tx:
            models.mark_signed(tx, manifest.ref)
            variants = ", ".join(variant.name for variant in manifest.variants)
            add_event(tx, now, "model_pushed", f"{manifest.ref} pushed with {variants}")


class _Fields(Wire):
    """Any fields: a draft of a newer command line keeps what this server does not know."""
