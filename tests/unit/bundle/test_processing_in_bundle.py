"""A processing file is read strictly, and goes into a bundle only when it fits every variant."""

from __future__ import annotations

from pathlib import Path

import pytest

from regatta_fleet.examples.digits import MODEL
from regatta_fleet.models.bare_model import bundle_from_model
from regatta_fleet.models.bundle_source import BundleSource
from regatta_protocol.errors import Rejected
from regatta_protocol.processing import as_json
from regatta_protocol.processing_file import read_processing

_TOML = '[image]\nheight = 8\nwidth = 8\nchannels = 1\nscale = 0.0625\n[result]\nkind = "classification"\ntop = 3\n'


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(_TOML)
    (tmp_path / "p.json").write_text(
        '{"image": {"height": 8, "width": 8, "channels": 1, "scale": 0.0625},'
        ' "result": {"kind": "classification", "top": 3}}'
    )

    assert read_processing(tmp_path / "p.toml") == read_processing(tmp_path / "p.json")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (_TOML + "tpo = 4\n", "unknown keys: result.tpo"),
        ("[picture]\nheight = 8\n", "unknown keys: picture"),
        ("[image]\nheight = 8\n", "image.width: is required"),
        ('[result]\nkind = "guess"\n', "result"),
        ("height: 8", "neither TOML nor JSON"),
        ("{", "neither TOML nor JSON"),
    ],
)
def test_the_offending_key_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "p.toml").write_text(text)

    with pytest.raises(Rejected, match=says):
        read_processing(tmp_path / "p.toml")


def test_it_goes_into_the_bundle_when_it_fits(tmp_path: Path) -> None:
    """The digits model takes 8 × 8; a description of 9 × 8 is refused before any work."""
    (tmp_path / "p.toml").write_text(_TOML)
    processing = read_processing(tmp_path / "p.toml")

    bundle = bundle_from_model(MODEL, tmp_path / "bundle", BundleSource(processing=processing))

    assert (bundle.draft.input, bundle.draft.result) == (as_json(processing.image), as_json(processing.result))
    (tmp_path / "p.toml").write_text(_TOML.replace("height = 8", "height = 9"))
    with pytest.raises(Rejected, match="variant float32: image: \\[1, 9, 8, 1\\]"):
        bundle_from_model(MODEL, tmp_path / "other", BundleSource(processing=read_processing(tmp_path / "p.toml")))
