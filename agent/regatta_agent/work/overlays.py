"""Which FPGA overlay a version brings, as files of the store, and for whom the FPGA is kept.

One overlay is loaded at a time. A version whose placement needs it keeps the FPGA until its model is placed elsewhere
or withdrawn: another version's race then leaves its own overlay out, and says why. Loading is the race's and the
serving worker's (regatta_runtimes.fpga); nothing here touches the FPGA.
"""

from __future__ import annotations

from regatta_agent.core.installs import AgentRecord, Install
from regatta_agent.disk.store import Store
from regatta_protocol.ids import ModelRef
from regatta_protocol.manifest import Manifest, Overlay, Variant
from regatta_protocol.messages import InstallState
from regatta_runtimes.candidate import parse_candidate_id
from regatta_runtimes.fpga.overlay import OverlayFiles

__all__ = ["fpga_reserved", "overlay_files", "overlay_of"]

_SERVING = (InstallState.PLACED, InstallState.ON_TRIAL, InstallState.COMMITTED)


def overlay_files(variant: Variant, store: Store) -> OverlayFiles | None:
    """Return the variant's overlay as files of the store, or None when it has none."""
    overlay = variant.overlay
    if overlay is None:
        return None
    return OverlayFiles(
        name=overlay.name,
        bitstream=str(store.blob_path(overlay.bitstream.digest)),
        device_tree=None if overlay.dtbo is None else str(store.blob_path(overlay.dtbo.digest)),
        flags=overlay.flags,
        delegate=overlay.delegate,
    )


def overlay_of(manifest: Manifest, store: Store) -> OverlayFiles | None:
    """Return the version's one overlay as files of the store, or None when it has none."""
    files = (overlay_files(variant, store) for variant in manifest.variants)
    return next((one for one in files if one is not None), None)


def fpga_reserved(record: AgentRecord, store: Store, ref: ModelRef) -> str | None:
    """Return why the race of `ref` must leave its overlay out, or None when it may load it."""
    manifest = store.manifest(ref)
    wanted = None if manifest is None else _overlay(manifest.variants)
    if wanted is None:
        return None
    for install in record.all():
        held = _held(install, store) if install.ref != ref and install.state in _SERVING else None
        if held is None or _content(held) == _content(wanted):
            continue
        way = (
            f"send a version of {ref.name} without an overlay first, then this one"
            if install.name == ref.name
            else f"place {install.name} on another accelerator, or push both models with one overlay"
        )
        return (
            f"the FPGA serves {install.ref} with overlay {held.name}, so overlay {wanted.name} of {ref} is not "
            f"loaded: {way}"
        )
    return None


def _overlay(variants: tuple[Variant, ...]) -> Overlay | None:
    return next((variant.overlay for variant in variants if variant.overlay is not None), None)


def _held(install: Install, store: Store) -> Overlay | None:
    """Return the overlay that the version needs: for its winner, also while that rests, or for what serves instead."""
    manifest = store.manifest(install.ref)
    successor = install.successor.placement if install.successor is not None else None
    wanted = [one for one in (install.winner, install.placement, successor) if one is not None]
    overlay = None if manifest is None else _overlay(manifest.variants)
    needed = overlay is not None and overlay.delegate in {parse_candidate_id(one).delegate for one in wanted}
    return overlay if needed else None


def _content(overlay: Overlay) -> tuple[str, str | None, int]:
    """Return what decides whether two overlays may share the FPGA."""
    return overlay.bitstream.digest, None if overlay.dtbo is None else overlay.dtbo.digest, overlay.flags
