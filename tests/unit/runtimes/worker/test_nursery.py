"""Workers: however vendor code ends one, the owner is told which way, in time, and goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from regatta_protocol.measurement import Outcome
from regatta_runtimes.errors import RuntimeMissing
from regatta_runtimes.worker.job import Failed, Open, Opened, Time, Timed
from regatta_runtimes.worker.nursery import Nursery, WorkerEnded

BACKENDS = {"faulty": "faulty_backend"}


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery("faulty", BACKENDS) as opened:
        yield opened


def _open(variant: str) -> Open:
    return Open(candidate_id=f"faulty/{variant}/none/t1", model_path="/nowhere")


@pytest.mark.parametrize(
    ("variant", "outcome", "words"),
    [
        ("segfault", Outcome.CRASHED, "SIGSEGV"),
        ("abort", Outcome.CRASHED, "SIGABRT"),
        ("exit", Outcome.CRASHED, "exit status 3 while doing open; its last words: the vendor gave up"),
        ("hang", Outcome.HUNG, r"no answer to open within 0\.5 s"),
    ],
)
def test_each_end_has_its_name(nursery: Nursery, variant: str, outcome: Outcome, words: str) -> None:
    """A crash names its signal, an exit its status and last words, a hang its limit."""
    worker = nursery.start()

    with pytest.raises(WorkerEnded, match=words) as caught:
        worker.ask(_open(variant), 0.5 if variant == "hang" else 20.0)

    assert caught.value.outcome == outcome
    assert not Path(f"/proc/{worker.pid}").exists()


@pytest.mark.parametrize("limit_mib", [128, 400])
def test_eating_memory_is_told_apart_from_a_crash(nursery: Nursery, limit_mib: int) -> None:
    """Over its limit, whether the allocator or the watch notices first."""
    worker = nursery.start(limit_mib << 20)

    try:
        answer = worker.ask(_open("eat"), 30.0)
    except WorkerEnded as err:
        assert err.outcome == Outcome.OUT_OF_MEMORY
    else:
        assert isinstance(answer, Failed)
        assert answer.stage == "memory"
    worker.close()


@pytest.mark.parametrize(("variant", "stage"), [("create", "create"), ("invoke", "invoke")])
def test_expected_failures_are_answers(nursery: Nursery, variant: str, stage: str) -> None:
    """A refusal does not end the worker."""
    worker = nursery.start()

    answer = worker.ask(_open(variant), 20.0)

    assert isinstance(answer, Failed)
    assert answer.stage == stage
    assert isinstance(worker.ask(_open("sound"), 20.0), Opened)
    worker.close()


def test_others_live_on_when_one_dies(nursery: Nursery) -> None:
    """A worker's death is nothing to its siblings."""
    healthy, doomed = nursery.start(), nursery.start()
    healthy.ask(_open("sound"), 20.0)
    with pytest.raises(WorkerEnded):
        doomed.ask(_open("segfault"), 20.0)

    timed = healthy.ask(Time(budget_s=0.01, min_samples=5, max_samples=50), 20.0)

    assert isinstance(timed, Timed)
    assert 5 <= len(timed.samples_us) <= 50
    assert healthy.peak_rss_bytes > 1 << 20
    healthy.close()


def test_closing_ends_every_worker() -> None:
    """Leaving the nursery leaves no process, not even a hanging one, and no descriptor."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    with Nursery("faulty", BACKENDS) as nursery:
        worker = nursery.start()
        with pytest.raises(WorkerEnded):
            worker.ask(_open("hang"), 0.2)
        second = nursery.start()
        second.ask(_open("sound"), 20.0)
        second.close()

    assert not Path(f"/proc/{second.pid}").exists()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_workers_dump_no_core_and_are_limited(nursery: Nursery) -> None:
    """The limits that the kernel holds for a worker."""
    worker = nursery.start(256 << 20)
    worker.ask(_open("sound"), 20.0)

    limits = Path(f"/proc/{worker.pid}/limits").read_text()
    worker.close()

    assert [line.split()[-3:-1] for line in limits.splitlines() if line.startswith("Max core")] == [["1", "1"]]
    assert str(256 << 20) in limits


@pytest.mark.parametrize("module", ["no_such_module_anywhere", "missing_backend"])
def test_a_runtime_that_is_not_here_is_missing(module: str) -> None:
    """Said at the start, with the module's name."""
    with pytest.raises(RuntimeMissing, match=module), Nursery("other", {"other": module}):
        pass


def test_a_runtime_that_crashes_at_import_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vendor's package that aborts on import takes nothing with it."""
    (tmp_path / "crashing_backend.py").write_text("import os\nos.abort()\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(RuntimeMissing, match="ended with status"), Nursery("other", {"other": "crashing_backend"}):
        pass
