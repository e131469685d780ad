"""The manifest: what is signed stays as it is, and names every file once."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from regatta_protocol.codec import decode
from regatta_protocol.errors import Rejected
from regatta_protocol.ids import Digest, ModelName, ModelRef
from regatta_protocol.manifest import FileRef, Manifest, Overlay, Variant, target_path
from regatta_protocol.values import TensorSpec


def ref(letter: str) -> FileRef:
    return FileRef(digest=Digest(letter * 64), size_bytes=10)


def variant(name: str, file: FileRef) -> Variant:
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 8, 8, 1))
    return Variant(name=name, file=file, precision="float32", inputs=(spec,), outputs=(spec,))


def manifest(*variants: Variant) -> Manifest:
    return Manifest(
        name=ModelName("digits"), version=2, created_at="2024-01-01T00:00:00Z", variants=variants, golden=ref("c"),
        evaluation=ref("d"),
    )  # fmt: skip


def test_files_are_named_once() -> None:
    """Two variants may share a file; the optional ones count when they are there."""
    whole = manifest(variant("a", ref("a")), variant("b", ref("a")))

    assert [file.digest[0] for file in whole.files()] == ["a", "c", "d"]


def _overlaid(name: str, overlay: Overlay) -> Variant:
    return variant(name, ref("a")).model_copy(update={"requires": ("dpu",), "overlay": overlay})


def test_an_overlays_files_are_files_of_the_bundle() -> None:
    """Bitstream and device tree are signed, stored and fetched like all others."""
    overlay = Overlay(name="x", bitstream=ref("e"), dtbo=ref("f"), delegate="dpu")

    whole = manifest(variant("a", ref("a")), _overlaid("b", overlay))

    assert [file.digest[0] for file in whole.files()] == ["a", "e", "f", "c", "d"]
    assert decode(Manifest, whole.model_dump_json(exclude_none=True).encode()) == whole


def test_an_overlay_stands_with_its_delegate_and_alone() -> None:
    """A variant that does not require the overlay's delegate, and a version with two overlays, are refused."""
    first = Overlay(name="x", bitstream=ref("e"), delegate="dpu")
    second = Overlay(name="y", bitstream=ref("f"), delegate="dpu")

    with pytest.raises(ValidationError, match="must require dpu"):
        Variant.model_validate({**variant("b", ref("a")).model_dump(), "overlay": first.model_dump()})
    with pytest.raises(ValidationError, match="2 different overlays"):
        manifest(_overlaid("a", first), _overlaid("b", second))


def test_it_says_where_it_stands() -> None:
    """The target path in the signed metadata follows from name and version."""
    assert manifest(variant("a", ref("a"))).ref == ModelRef(ModelName("digits"), 2)
    assert target_path(ModelRef(ModelName("digits"), 2)) == "models/digits/2/manifest.json"


def test_variants_of_one_name_are_refused() -> None:
    """A candidate id must mean one file."""
    with pytest.raises(ValidationError, match="same name"):
        manifest(variant("a", ref("a")), variant("a", ref("b")))


def test_unknown_fields_are_kept() -> None:
    """At every level: a manifest that is passed on still says what a newer fleet said."""
    text = manifest(variant("a", ref("a"))).model_dump_json(exclude_none=True)
    newer = text.replace('"size_bytes":10', '"size_bytes":10,"torrent":"x"').replace(
        '"version":2', '"version":2,"z":[1]'
    )

    passed_on = decode(Manifest, newer.encode()).model_dump_json(exclude_none=True)

    assert passed_on.count('"torrent":"x"') == 3 and '"z":[1]' in passed_on


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"size_bytes":10', '"size_bytes":-1'),
        ('"size_bytes":10', '"size_bytes":3000000000'),
        ('"version":2', '"version":0'),
        ('"name":"digits"', '"name":"../digits"'),
        ('"name":"a"', '"name":"../a"'),
        ("c" * 64, "c" * 63),
        ("c" * 64, "C" * 64),
    ],
)
def test_what_could_leave_its_place_is_rejected(old: str, new: str) -> None:
    """Names and digests become file names on devices."""
    text = manifest(variant("a", ref("a"))).model_dump_json(exclude_none=True)
    assert old in text

    with pytest.raises(Rejected):
        decode(Manifest, text.replace(old, new).encode())
