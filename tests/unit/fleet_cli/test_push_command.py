"""`regatta model push` and `show` over the fake fleet: what is uploaded, stored and refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet_command import document, output
from regatta_fleet.cli import exit_codes, main
from regatta_fleet.examples.digits import MODEL
from regatta_fleet.testing import FakeFleet


def test_push_of_a_bundle_uploads_what_is_missing(
    fleet: FakeFleet, capsys: pytest.CaptureFixture[str], bundle: Path
) -> None:
    """The next version is made; a second push uploads nothing, and a policy option goes into the draft."""
    text = output(capsys, "model", "push", str(bundle), "--name", "kit")
    uploads = dict(fleet.blobs)
    manifest = document(
        capsys, "model", "push", str(bundle), "--name", "kit", "--objective", "energy", "--accuracy-drop", "1%"
    )

    assert "pushed kit:1" in text
    assert "4.00×" in text
    assert len(uploads) == 3
    assert fleet.blobs == uploads
    assert manifest["version"] == 2
    assert manifest["policy"]["objective"] == "energy"
    assert manifest["policy"]["max_accuracy_drop"] == pytest.approx(0.01)


def test_push_refuses_bad_sources(
    fleet: FakeFleet, capsys: pytest.CaptureFixture[str], bundle: Path, tmp_path: Path
) -> None:
    """A file that is no model, a folder that is no bundle, a damaged bundle: one line each, nothing is pushed."""
    text_file = tmp_path / "notes.tflite"
    text_file.write_text("not a model")
    (tmp_path / "folder").mkdir()
    damaged = next((bundle / "files").iterdir())

    assert main(["model", "push", str(text_file), "--name", "kit"]) == 65
    assert main(["model", "push", str(tmp_path / "folder"), "--name", "kit"]) == 65
    damaged.write_bytes(damaged.read_bytes() + b"x")
    assert main(["model", "push", str(bundle), "--name", "kit"]) == 65
    assert main(["model", "push", str(bundle), "--name", "Kit!"]) == 65
    assert main(["model", "push", str(bundle), "--name", "kit", "--mean", "1"]) == exit_codes.USAGE
    assert main(["model", "push", str(tmp_path / "absent"), "--name", "kit"]) == exit_codes.USAGE
    assert "kit" not in fleet.versions
    assert "Traceback" not in capsys.readouterr().err


def test_push_takes_an_overlay_whole_or_not_at_all(
    fleet: FakeFleet, capsys: pytest.CaptureFixture[str], bundle: Path, tmp_path: Path
) -> None:
    """Its files are uploaded with the model's; options that belong together are asked for, and never half taken."""
    (tmp_path / "bits.bin").write_bytes(b"bits")
    bits, model = str(tmp_path / "bits.bin"), str(MODEL)
    wrong = (
        (model, "--overlay", "dpu"),
        (model, "--bitstream", bits),
        (model, "--overlay", "dpu", "--bitstream", bits),
        (model, "--overlay", "dpu", "--bitstream", bits, "--overlay-delegate", "mine", "--overlay-flags", "x"),
        (str(bundle), "--overlay", "dpu", "--bitstream", bits, "--overlay-delegate", "mine"),
    )
    for options in wrong:
        assert main(["model", "push", *options, "--name", "kit"]) == exit_codes.USAGE, options
    assert "kit" not in fleet.versions

    right = ("--overlay", "dpu", "--bitstream", bits, "--overlay-delegate", "mine", "--overlay-flags", "0x21")
    manifest = document(capsys, "model", "push", model, *right, "--name", "kit")

    overlay = manifest["variants"][1]["overlay"]
    assert (overlay["name"], overlay["delegate"], overlay["flags"]) == ("dpu", "mine", 0x21)
    assert overlay["bitstream"]["digest"] in fleet.blobs
    assert "dpu for mine, bitstream 4 B" in output(capsys, "model", "show", "kit")


def test_model_show_takes_the_newest(fleet: FakeFleet, capsys: pytest.CaptureFixture[str], bundle: Path) -> None:
    """Without a version the newest is shown, with its variants and devices."""
    for _ in range(2):
        output(capsys, "model", "push", str(bundle), "--name", "kit")

    assert "Model kit:2" in output(capsys, "model", "show", "kit")
    assert document(capsys, "model", "show", "kit:1")["manifest"]["version"] == 1
    assert "kit" in output(capsys, "model", "list")
