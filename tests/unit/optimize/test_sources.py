"""What can be a source, and what each lacks that is none."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from regatta_fleet.cli import main
from regatta_fleet.optimize.sources.kinds import name_source
from regatta_fleet.optimize.sources.resolve import resolve_source
from regatta_protocol.errors import Misuse, Rejected
from tiny_models import plain_chain, write_samples_file, write_tree


def test_sources_are_known_by_what_they_are(tmp_path: Path) -> None:
    model = write_tree(tmp_path / "m.bin", plain_chain())
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/saved_model.pb").write_bytes(b"")
    (tmp_path / "net.py").write_text("")
    (tmp_path / "m.onnx").write_bytes(b"")

    assert name_source(str(model)).kind == "tflite"
    assert name_source(str(tmp_path / "saved")).kind == "savedmodel"
    assert name_source(str(tmp_path / "m.onnx")).kind == "onnx"
    found = name_source(f"{tmp_path}/net.py:make")
    assert (found.kind, found.place, found.factory) == ("torch", f"{tmp_path}/net.py", "make")
    assert name_source("package.module:make").factory == "make"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("empty", r"is a folder without saved_model\.pb"),
        ("weights.pt", r"write a function that returns the module, and name it as FILE\.py:FUNCTION"),
        ("notes.txt", r"is no model that is known: give \.tflite"),
        ("absent.tflite", r"there is no model .*absent\.tflite: give \.tflite"),
        ("absent.py:make", r"there is no file .*absent\.py"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path: Path, name: str, wanted: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.pt").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("none")

    with pytest.raises(Rejected, match=wanted):
        name_source(str(tmp_path / name))


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed here")
def test_without_tensorflow_its_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/saved_model.pb").write_bytes(b"")
    samples = write_samples_file(tmp_path / "s.npz", 4, 8, 8, 1)

    with pytest.raises(Misuse, match=r"pip install 'regatta-edge\[tensorflow\]'"):
        resolve_source(str(tmp_path / "saved"), tmp_path / "m.tflite", samples=samples)

    assert not (tmp_path / "m.tflite").exists()


def test_a_factory_that_raises_or_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def make():\n    return 1 / 0\n")
    samples = write_samples_file(tmp_path / "s.npz", 4, 8, 8, 1)
    for factory, wanted in (("make", r"net\.py, line 2: make\(\) raised ZeroDivisionError"), ("other", "no function")):
        with pytest.raises(Rejected, match=wanted):
            resolve_source(f"{tmp_path}/net.py:{factory}", tmp_path / "m.tflite", samples=samples)


def test_a_folder_of_nothing_ends_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = write_samples_file(tmp_path / "s.npz", 4, 8, 8, 1)

    code = main(["model", "optimize", str(tmp_path), "--data", str(samples), "--output", str(tmp_path / "out")])

    assert code == 65
    assert "without saved_model.pb" in capsys.readouterr().err
