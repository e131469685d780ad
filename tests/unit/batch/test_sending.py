"""Which file of a device is sent to its fleet: the output that a job's summary names, and nothing else."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import pytest

from regatta_agent.batch import sending
from regatta_agent.work.results_sender import SendingSpec
from regatta_protocol.batch import BatchJob, BatchSummary, ResultsWanted
from regatta_protocol.errors import Rejected, TooLarge
from regatta_protocol.ids import ModelName, digest_of_bytes

_JOB = BatchJob(id="b-1", model=ModelName("m"), input="/in", output="day/out.jsonl")
_DATA = b"answers"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes, int, str]]:
    """What would have gone to the server: job, content, size, digest."""
    found: list[tuple[str, bytes, int, str]] = []

    def send(_identity: object, batch: str, file: BinaryIO, size_bytes: int, digest: str, _tell: object) -> None:
        file.seek(0)
        found.append((batch, file.read(), size_bytes, digest))

    monkeypatch.setattr(sending, "send_results", send)
    monkeypatch.setattr(sending, "load_identity", lambda _folder: None)
    return found


def _spec(folder: Path, job: BatchJob = _JOB, max_bytes: int = 100) -> SendingSpec:
    wanted = ResultsWanted(job=job, max_bytes=max_bytes)
    return SendingSpec(wanted=wanted, folder=folder / "out", identity=folder / "identity", parent=1)


def _finish(output: Path, job: BatchJob = _JOB) -> None:
    """Leave what a job leaves."""
    summary = BatchSummary(records=1, refused=0, seconds=1.0, per_second=1.0)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(_DATA)
    text = f'{{"job":{job.model_dump_json()},"summary":{summary.model_dump_json()}}}'
    output.with_name(f"{output.name}.summary").write_text(text)


def test_the_output_of_the_job_is_sent_with_its_digest(tmp_path: Path, sent: list[tuple[str, bytes, int, str]]) -> None:
    """As it lies on the disk."""
    _finish(tmp_path / "out" / "day" / "out.jsonl")

    sending.send(_spec(tmp_path))

    assert sent == [("b-1", _DATA, len(_DATA), digest_of_bytes(_DATA))]


def test_any_other_file_stays_where_it_is(tmp_path: Path, sent: list[tuple[str, bytes, int, str]]) -> None:
    """None there, another job's, outside of the folder by words or by a link, a link itself, a pipe, too long."""
    output = tmp_path / "out" / "day" / "out.jsonl"
    with pytest.raises(Rejected, match="removed or replaced"):
        sending.send(_spec(tmp_path))
    _finish(output, _JOB.model_copy(update={"id": "b-2"}))
    with pytest.raises(Rejected, match="removed or replaced"):
        sending.send(_spec(tmp_path))
    _finish(tmp_path / "secret.jsonl", outside := _JOB.model_copy(update={"output": "../secret.jsonl"}))
    with pytest.raises(Rejected, match="leads out"):
        sending.send(_spec(tmp_path, outside))
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    _finish(tmp_path / "secret.jsonl", linked := _JOB.model_copy(update={"output": "link/secret.jsonl"}))
    with pytest.raises(Rejected, match="leads out"):
        sending.send(_spec(tmp_path, linked))
    _finish(output)
    with pytest.raises(TooLarge, match="over the 3"):
        sending.send(_spec(tmp_path, max_bytes=3))
    output.unlink()
    output.symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(Rejected, match="cannot be opened"):
        sending.send(_spec(tmp_path))

    assert sent == []


def test_the_process_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With the exit status of the error's family."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"no spec")))

    assert sending.main() == Rejected.exit_code
    assert capsys.readouterr().err
