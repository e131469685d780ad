"""A delegate of a user's own file: raced with its options, placed, and served exactly as it was raced."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from accelerator import build_delegate
from device_rig import MODEL
from processes import children_of
from real_rig import RealRig, push_model
from regatta_agent.bootstrap import run_agent
from regatta_agent.client import Client
from regatta_protocol.errors import Misuse
from regatta_protocol.values import TensorSpec
from tiny_models import unary_model

pytestmark = pytest.mark.system

X = np.array([[-1.0, 2.0, -3.0, 4.0]], np.float32)
# By itself the library cannot be created; one set of options lets it work, one lets it answer wrongly.
TABLE = """
[mine]
what = "a test accelerator"
libraries = ["{library}"]
runtimes = ["litert"]
options = {{ mode = "create" }}
option_sets.works = {{ mode = "real" }}
option_sets.lies = {{ mode = "wrong" }}
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    built = build_delegate(tmp_path)
    if built is None:
        pytest.skip("gcc is not installed, which builds the test delegate")
    return built


@pytest.fixture
def rig(tmp_path: Path, library: Path) -> Iterator[RealRig]:
    table = tmp_path / "mine.toml"
    table.write_text(TABLE.format(library=library))
    made = RealRig(tmp_path, race_budget_s=8.0, race_threads=[1], telemetry_period_s=1.0, delegate_files=[table])
    made.start()
    yield made
    made.loop.stopping = "the test is over"
    made.loop.stop()
    made.processes.close()


def _serves(rig: RealRig) -> bool:
    return rig.state(1) == "committed" and any(worker.ready for worker in rig.workers().values())


def _answer(rig: RealRig) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    with Client(rig.config.run_dir / f"{MODEL}.sock") as client:
        return client.infer(MODEL, X)["out"]


def _maps_of_family(pid: int) -> str:
    """Return what a process and its children have mapped."""
    return Path(f"/proc/{pid}/maps").read_text() + "".join(_maps_of_family(child) for child in children_of(pid))


def test_what_was_raced_is_what_serves(rig: RealRig, tmp_path: Path, library: Path) -> None:
    """The set of options that works is placed, and its library and options reach the worker, which loads it.

    It is the only candidate: when its runner is killed, another worker serves from it.
    """
    tensors = tuple(TensorSpec(name=name, dtype="float32", shape=(1, 4)) for name in ("in", "out"))
    push_model(rig, tmp_path, 1, unary_model(), (tensors[0], tensors[1]), ("mine",))
    rig.fleet.assign(1, trial_s=0.2)

    assert rig.live(lambda: _serves(rig)), rig.install(1)

    report = json.loads((rig.config.state_dir / "races" / f"{MODEL}-1.json").read_text())
    assert {one["id"]: one["outcome"] for one in report["candidates"]} == {
        "litert/float32/mine/t1": "create_failed",
        "litert/float32/mine+works/t1": "measured",
        "litert/float32/mine+lies/t1": "wrong_output",
    }
    assert rig.install(1).placement == "litert/float32/mine+works/t1"
    assert str(library) in _maps_of_family(rig.worker_pid())
    np.testing.assert_array_equal(_answer(rig), np.abs(X))

    before = rig.worker_pid()
    (runner,) = children_of(before)
    os.kill(runner, signal.SIGKILL)
    assert rig.live(lambda: _serves(rig) and rig.worker_pid() != before), rig.install(1)
    np.testing.assert_array_equal(_answer(rig), np.abs(X))


def test_a_wrong_delegate_file_stops_the_agent_at_its_start(rig: RealRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the file's name, instead of failing every race later."""
    monkeypatch.setattr("regatta_agent.lost_identity.mend_identity", lambda _folder: rig.identity)
    rig.config.delegate_files[0].write_text("[mine")

    with pytest.raises(Misuse, match=r"delegate_files: .*mine\.toml cannot be read"):
        run_agent(rig.config)
