"""Which overlay a version brings, and for whom the FPGA is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from regatta_agent.core.installs import AgentRecord, Install, RaceSummary
from regatta_agent.disk.priors import Priors
from regatta_agent.disk.quarantine_file import QuarantineFile
from regatta_agent.disk.store import Store
from regatta_agent.work.overlays import fpga_reserved, overlay_files
from regatta_agent.work.racing import RaceSettings, race_spec
from regatta_protocol.codec import encode
from regatta_protocol.ids import Digest, ModelName, ModelRef, digest_of_bytes
from regatta_protocol.manifest import FileRef, Manifest, Overlay, Variant
from regatta_protocol.messages import InstallState
from regatta_protocol.values import TensorSpec
from regatta_runtimes.fpga.overlay import OverlayFiles
from regatta_runtimes.race.run import RaceSpec

ON_FPGA, ON_CPU = "litert/fpga/mine/t1", "litert/float32/xnnpack/t1"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path)
    made.prepare()
    return made


def _ref(letter: str) -> FileRef:
    return FileRef(digest=Digest(letter * 64), size_bytes=1)


def _put(store: Store, name: str, version: int, bitstream: str | None) -> ModelRef:
    spec = TensorSpec(name="x", dtype="float32", shape=(1,))
    variant = Variant(name="float32", file=_ref("a"), precision="float32", inputs=(spec,), outputs=(spec,))
    variants = [variant]
    if bitstream is not None:
        overlay = Overlay(name=f"design-{bitstream}", bitstream=_ref(bitstream), dtbo=_ref("d"), delegate="mine")
        variants.append(variant.model_copy(update={"name": "fpga", "requires": ("mine",), "overlay": overlay}))
    ref = ModelRef(ModelName(name), version)
    manifest = Manifest(name=ref.name, version=version, created_at="now", variants=tuple(variants), golden=_ref("c"))
    text = encode(manifest)
    store.put_manifest(ref, text, digest_of_bytes(text))
    return ref


def _record(*installs: tuple[ModelRef, InstallState, str]) -> AgentRecord:
    record = AgentRecord()
    for ref, state, placement in installs:
        record = record.with_install(Install(name=ref.name, version=ref.version, state=state, placement=placement))
    return record


@pytest.mark.parametrize(
    ("state", "placement", "bitstream", "kept"),
    [
        (InstallState.COMMITTED, ON_FPGA, "e", True),
        (InstallState.PLACED, ON_FPGA, "e", True),
        (InstallState.ON_TRIAL, ON_FPGA, "e", True),
        (InstallState.COMMITTED, ON_FPGA, "f", False),  # the same content: both may use it
        (InstallState.COMMITTED, ON_CPU, "e", False),
        (InstallState.COMMITTED, ON_CPU, None, False),
        (InstallState.RETIRED, ON_FPGA, "e", False),
        (InstallState.FAILED, ON_FPGA, "e", False),
    ],
)
def test_the_fpga_is_kept_for_what_is_placed_on_it(
    store: Store, state: InstallState, placement: str, bitstream: str | None, kept: bool
) -> None:
    """With another overlay, as long as it serves or is about to."""
    cats, dogs = _put(store, "cats", 3, bitstream), _put(store, "dogs", 1, "f")
    record = _record((cats, state, placement), (dogs, InstallState.RACING, ON_FPGA))

    reason = fpga_reserved(record, store, dogs)

    assert (reason is not None) is kept
    if reason is not None:
        assert reason.startswith("the FPGA serves cats:3 with overlay design-e, so overlay design-f of dogs:1 is not")
        assert "another accelerator" in reason


def test_the_fpga_is_kept_for_a_winner_that_rests(store: Store) -> None:
    """Another candidate serves in its place; the winner is retried and taken back."""
    cats, dogs = _put(store, "cats", 3, "e"), _put(store, "dogs", 1, "f")
    record = _record((cats, InstallState.COMMITTED, ON_CPU)).changed(cats, race=RaceSummary(placement=ON_FPGA))

    assert fpga_reserved(record, store, dogs) is not None


def test_a_new_version_with_another_overlay_is_told_the_way(store: Store) -> None:
    """The version before serves from the FPGA, and goes on doing so."""
    old, new = _put(store, "cats", 1, "e"), _put(store, "cats", 2, "f")

    reason = fpga_reserved(_record((old, InstallState.COMMITTED, ON_FPGA)), store, new)

    assert reason is not None and "a version of cats without an overlay first" in reason


def test_a_version_without_an_overlay_may_always_race(store: Store) -> None:
    """It does not touch the FPGA."""
    cats, dogs = _put(store, "cats", 1, "e"), _put(store, "dogs", 1, None)

    assert fpga_reserved(_record((cats, InstallState.COMMITTED, ON_FPGA)), store, dogs) is None


def test_the_race_gets_the_overlay_as_files_of_the_store(store: Store, tmp_path: Path) -> None:
    """In the very form that the race reads."""
    manifest = store.manifest(_put(store, "cats", 1, "e"))
    assert manifest is not None

    settings = RaceSettings(tmp_path, 1.0, None, QuarantineFile(tmp_path), Priors(tmp_path))
    spec = RaceSpec.model_validate(race_spec(manifest, store, settings))

    expected = OverlayFiles(
        name="design-e",
        bitstream=str(store.blob_path(Digest("e" * 64))),
        device_tree=str(store.blob_path(Digest("d" * 64))),
        delegate="mine",
    )
    assert [variant.overlay for variant in spec.variants] == [None, expected]
    assert [overlay_files(variant, store) for variant in manifest.variants] == [None, expected]
