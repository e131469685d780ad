"""`regatta-agent pipeline run` end to end: a folder's pictures through a served model into a file, counted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from polling import wait_until
from regatta_agent.cli.commands import cli
from regatta_agent.pipeline.counters import read_counters
from regatta_agent.serving.alone import MODEL_NAME, ModelFile, serve_alone
from tiny_models import write_tiny_model

pytestmark = pytest.mark.system


def test_pictures_go_in_and_results_come_out(tmp_path: Path) -> None:
    """A pipeline that starts before its model waits for it; SIGTERM ends it, and its counters remain."""
    image = pytest.importorskip("PIL.Image", reason="pictures need the images extra")
    folder, out, config = tmp_path / "in", tmp_path / "out.jsonl", tmp_path / "pipelines.toml"
    folder.mkdir()
    config.write_text(
        f'[gate]\nmodel = "{MODEL_NAME}"\ntop = 1\n'
        f'source = {{ kind = "directory", path = "{folder}", after = "remove", period_s = 0.05 }}\n'
        f'sinks = [{{ kind = "file", path = "{out}" }}]\n'
    )
    for number in range(3):
        image.new("L", (20, 20), color=60 * number).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes(b"no picture")
    write_tiny_model(tmp_path / "tiny.tflite")
    places = ["--config", str(config), "--run-dir", str(tmp_path), "--status-dir", str(tmp_path / "status")]
    process = subprocess.Popen(
        [sys.executable, "-m", "regatta_agent", "pipeline", "run", "gate", *places, "--json"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    try:
        wait_until(lambda: "gate" in read_counters(tmp_path / "status"), 60.0, "the pipeline tells that it waits")
        with serve_alone(ModelFile(tmp_path / "tiny.tflite")) as socket:
            (tmp_path / f"{MODEL_NAME}.sock").symlink_to(socket)
            wait_until(lambda: out.exists() and out.read_text().count("\n") == 4, 60.0, "all four results are there")
            process.send_signal(signal.SIGTERM)
            told = json.loads(process.communicate(timeout=60)[0])
    finally:
        process.kill()
        process.wait()
    shown = CliRunner().invoke(cli, ["pipeline", "status", "--metrics", "--status-dir", str(tmp_path / "status")])

    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert process.returncode == 0
    assert [line["key"] for line in lines] == ["0.png", "1.png", "2.png", "3.png"]
    assert [len(line.get("classes", ())) for line in lines] == [1, 1, 1, 0] and "no picture" in lines[3]["error"]
    assert list(folder.iterdir()) == []
    assert (told["answered"], told["refused"], told["dropped"], told["undelivered"]) == (3, 1, 0, 0)
    assert 'regatta_pipeline_answered_frames_total{pipeline="gate"} 3' in shown.output
