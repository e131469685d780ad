"""Batch jobs on a real worker: killed again and again they end with every record once, in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from polling import wait_until
from regatta_agent.batch import fleet_job
from regatta_agent.batch.journal import Journal, Settings
from regatta_agent.cli.commands import cli
from regatta_agent.client import Client
from regatta_agent.serving.alone import MODEL_NAME, ModelFile, serve_alone
from regatta_agent.work.batch_runner import BatchSaid, BatchSpec
from regatta_protocol.batch import BatchJob
from regatta_protocol.codec import decode, encode
from regatta_protocol.errors import Misuse, Rejected, Retryable
from regatta_protocol.ids import ModelName
from tiny_models import write_tiny_model

pytestmark = pytest.mark.system

_COUNT = 5000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of digits, and samples that all differ."""
    folder = tmp_path_factory.mktemp("batch")
    write_tiny_model(folder / "tiny.tflite")
    samples = np.random.default_rng(0).random((_COUNT, 8, 8, 1), dtype=np.float32)
    np.save(folder / "x.npy", samples)
    return folder


@pytest.fixture(scope="module")
def run_dir(folder: Path) -> Iterator[Path]:
    """Where the model is served as `tiny`."""
    with serve_alone(ModelFile(folder / "tiny.tflite")) as socket:
        (folder / "model.sock").symlink_to(socket)
        yield folder


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["batch", *map(str, arguments)])


def _expected(run_dir: Path) -> Any:
    with Client(run_dir / "model.sock") as client:
        samples = np.load(run_dir / "x.npy")
        stacks = [client.infer_stacked(MODEL_NAME, samples[at : at + 40])["scores"] for at in range(0, _COUNT, 40)]
        alone = client.infer(MODEL_NAME, samples[0])["scores"]
    np.testing.assert_array_equal(stacks[0][0], alone[0])
    return np.concatenate(stacks)


def _wait_for_more(process: subprocess.Popen[bytes], done: Callable[[], int], last: int) -> None:
    """Return when more records are done than before, or the process has ended."""
    wait_until(lambda: done() > last or process.poll() is not None, 60.0, "it goes on", 0.005)


@pytest.mark.parametrize("ending", ["npy", "jsonl"])
def test_kills_lose_and_double_nothing(run_dir: Path, tmp_path: Path, ending: str) -> None:
    """SIGKILL whenever the journal has grown, three times at the most; the output is that of a job left alone."""
    output = tmp_path / f"out.{ending}"
    journal, last, kills = tmp_path / f"out.{ending}.journal", 0, 0
    program = (
        "import regatta_agent.batch.job as job; job._CHECKPOINT_S = 0.02; "
        "import regatta_agent.batch.questions as questions; questions._MAX_STACK = 2; "  # else it is over before a kill
        "from regatta_agent.cli import main; main()"
    )
    arguments = ["batch", MODEL_NAME, "--input", str(run_dir / "x.npy"), "--output", str(output)]
    command = [sys.executable, "-c", program, *arguments, "--run-dir", str(run_dir)]

    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}

    def done() -> int:
        return int(json.loads(journal.read_bytes())["records"]) if journal.exists() else 0

    while kills < 3 and not output.exists():
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        _wait_for_more(process, done, last)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills, last = kills + 1, max(last, done())
    if not output.exists():
        subprocess.run(command, check=True, timeout=120, env=environment)

    assert kills > 1
    if ending == "npy":
        np.testing.assert_array_equal(np.load(output), _expected(run_dir))
    else:
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        assert [line["key"] for line in lines] == [f"{run_dir / 'x.npy'}[{place}]" for place in range(_COUNT)]
        best = _expected(run_dir).argmax(axis=1).tolist()
        assert [line["classes"][0]["index"] for line in lines] == best
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_a_model_file_needs_no_fleet_and_a_bad_record_is_told(folder: Path, tmp_path: Path) -> None:
    """Pictures in a folder by a .tflite file; the one that is none has its error, and the command ends with 65."""
    image = pytest.importorskip("PIL.Image", reason="pictures need the images extra")
    (tmp_path / "in").mkdir()
    image.new("L", (20, 20), color=99).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes(b"no picture")
    image.new("L", (9, 7), color=9).save(tmp_path / "in" / "c.png")
    (tmp_path / "names").write_text("".join(f"digit {place}\n" for place in range(10)))

    result = _run(folder / "tiny.tflite", "--input", tmp_path / "in", "--output", tmp_path / "out.jsonl", "--names",
                  tmp_path / "names", "--top", 2, "--json")  # fmt: skip

    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert isinstance(result.exception, Rejected) and "1 of 3" in str(result.exception)
    assert json.loads(result.stdout)["refused"] == 1
    assert [len(line.get("classes", ())) for line in lines] == [2, 0, 2]
    assert "no picture" in lines[1]["error"] and lines[0]["classes"][0]["label"].startswith("digit ")


def test_a_sample_that_the_model_refuses_spoils_no_other(run_dir: Path, tmp_path: Path) -> None:
    """A NaN among stacked samples: a row of NaN in its place, the answers of all others in theirs."""
    samples = np.load(run_dir / "x.npy")[:300]
    samples[137, 3, 3] = np.nan
    np.save(tmp_path / "x.npy", samples)

    result = _run(MODEL_NAME, "--input", tmp_path / "x.npy", "--output", tmp_path / "out.npy", "--run-dir", run_dir)

    expected = _expected(run_dir)[:300]
    expected[137] = np.nan
    assert isinstance(result.exception, Rejected) and "1 of 300" in str(result.exception)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)


def test_what_cannot_be_done_is_said_before_it_is_begun(run_dir: Path, tmp_path: Path) -> None:
    """A taken output, a folder that is not there, changed inputs, and a model that is away each have their words."""
    out, place = tmp_path / "out.csv", ("--run-dir", run_dir)
    np.save(tmp_path / "x.npy", np.zeros((3, 8, 8, 1), dtype=np.float32))
    first = _run(MODEL_NAME, "--input", tmp_path / "x.npy", "--output", out, *place)
    taken = _run(MODEL_NAME, "--input", tmp_path / "x.npy", "--output", out, *place)
    nowhere = _run(MODEL_NAME, "--input", tmp_path / "x.npy", "--output", tmp_path / "no" / "out.csv", *place)
    away = _run("absent", "--input", tmp_path / "x.npy", "--output", tmp_path / "a.csv", "--patience", 0, *place)
    again = _run(MODEL_NAME, "--input", tmp_path / "x.npy", "--output", out, "--restart", *place)

    assert first.exit_code == 0 and out.read_text().count("\n") == 4
    assert isinstance(taken.exception, Rejected) and "--restart" in str(taken.exception)
    assert isinstance(nowhere.exception, Misuse)
    assert isinstance(away.exception, Retryable)
    assert again.exit_code == 0


def _spec(run_dir: Path, folder: Path, **fields: object) -> BatchSpec:
    given = {"id": "b-1", "model": ModelName(MODEL_NAME), "input": str(run_dir / "x.npy"), "output": "day/out.jsonl"}
    return BatchSpec(
        job=BatchJob.model_validate({**given, **fields}),
        socket=run_dir / "model.sock",
        folder=folder,
        inputs=(run_dir,),
        reserve_bytes=0,
        parent=os.getpid(),
    )


def test_the_process_of_a_fleet_job_sums_up_and_does_nothing_twice(run_dir: Path, tmp_path: Path) -> None:
    """It tells its progress, then classes and latencies; done again it is its summary; its output is nobody else's."""
    spec = _spec(run_dir, tmp_path, limit=300)
    command = [sys.executable, "-m", "regatta_agent.batch.fleet_job"]

    ended = subprocess.run(command, input=encode(spec), capture_output=True, timeout=60, check=True)
    said = [decode(BatchSaid, line) for line in ended.stdout.splitlines()]
    summary = said[-1].summary
    output = tmp_path / "day" / "out.jsonl"
    written = output.read_bytes()

    assert summary is not None and (summary.records, summary.refused) == (300, 0)
    assert summary.p50_us is not None and summary.p99_us is not None and summary.p50_us <= summary.p99_us
    best = [json.loads(line)["classes"][0] for line in written.splitlines()]
    assert sum(summary.classes.values()) + summary.other_classes == len(best) == 300
    assert summary.mean_score == pytest.approx(np.mean([one["score"] for one in best]))
    assert (said[0].total, summary.output_bytes) == (300, len(written))
    assert fleet_job.run_spec(spec) == summary
    assert output.read_bytes() == written
    with pytest.raises(Rejected, match="the output of job b-1 already"):
        fleet_job.run_spec(_spec(run_dir, tmp_path, id="b-2", limit=300))


@pytest.mark.parametrize("damage", ["journal", "part", "part gone"])
def test_a_fleet_job_whose_journal_or_spool_is_damaged_begins_anew(run_dir: Path, tmp_path: Path, damage: str) -> None:
    """Each record once, as if nothing had been there; and a damaged summary is said, with what to do."""
    spec, output = _spec(run_dir, tmp_path, limit=300), tmp_path / "day" / "out.jsonl"
    output.parent.mkdir()
    journal = Journal(output, Settings(model=spec.job.model, inputs=(spec.job.input,), format="jsonl", top=0))
    journal.open(restart=False)
    journal.append(b'{"of": "an earlier start"}\n', ["first"], 0)
    journal.checkpoint()
    journal.close()
    path = output.with_name(f"out.jsonl.{damage.partition(' ')[0]}")
    if damage == "part gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:5])

    assert fleet_job.run_spec(spec).records == 300
    assert len(output.read_bytes().splitlines()) == 300
    assert b"earlier" not in output.read_bytes()
    record = output.with_name("out.jsonl.summary")
    record.write_bytes(record.read_bytes()[:20])
    with pytest.raises(Rejected, match=r"summary is damaged .*remove both"):
        fleet_job.run_spec(spec)


def test_no_link_leads_a_fleet_job_out_of_the_operators_folders(run_dir: Path, tmp_path: Path) -> None:
    """Neither to read nor to write, whatever the words of its paths are."""
    allowed, outside = tmp_path / "allowed", tmp_path / "outside"
    (outside / "in").mkdir(parents=True)
    allowed.mkdir()
    (allowed / "out").symlink_to(outside)
    (allowed / "in").symlink_to(outside / "in")
    spec = _spec(run_dir, allowed, output="out/x.jsonl")

    for wrong in (spec, _spec(run_dir, allowed, input=f"{allowed}/in/*.jpg").model_copy(update={"inputs": (allowed,)})):
        with pytest.raises(Rejected, match="leads out of"):
            fleet_job.run_spec(wrong)
    assert list(outside.iterdir()) == [outside / "in"]
