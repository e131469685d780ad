"""A race and a serving worker behind an emulated FPGA, as real processes: loaded, raced, placed, served, given back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from accelerator import build_delegate
from emulated_fpga import MANAGER, EmulatedFpga, TreeKernel, build_shim, overlay, shim
from regatta_agent.serving.events import Degraded, Failed, Ready
from regatta_agent.serving.spec import Contender, ServeSpec
from regatta_protocol.codec import decode, encode
from regatta_protocol.ids import ModelName
from regatta_protocol.measurement import Outcome, RaceReport
from regatta_protocol.values import Plugin
from regatta_runtimes.fpga.loader import Fpga
from regatta_runtimes.fpga.overlay import OverlayFiles
from regatta_runtimes.race.run import RaceSpec, RaceVariant
from serving_process import ServingProcess
from tiny_models import unary_model, write_abs_golden


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The shim and the test delegate."""
    folder = tmp_path_factory.mktemp("built")
    library, delegate = build_shim(folder), build_delegate(folder)
    if library is None or delegate is None:
        pytest.skip("gcc is not installed, which builds the test delegate and the emulator's library")
    return library, delegate


@pytest.fixture
def board(tmp_path: Path, built: tuple[Path, Path]) -> EmulatedFpga:
    """A board with the delegate's library installed and described."""
    board = EmulatedFpga(tmp_path / "board")
    (board.root / "opt").mkdir()
    shutil.copy(built[1], board.root / "opt/libtest_delegate.so")
    _describe_delegate(board)
    return board


@pytest.fixture
def environment(board: EmulatedFpga, built: tuple[Path, Path]) -> Iterator[Mapping[str, str]]:
    with shim(built[0], board) as variables:
        yield {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _options(board: EmulatedFpga, mode: str = "real") -> dict[str, str]:
    return {"mode": mode, "needs": str(board.root / MANAGER / "state")}


def _describe_delegate(board: EmulatedFpga, mode: str = "real") -> None:
    """Put the delegate's row where the board's owner would."""
    folder = board.root / "etc/regatta/delegates.d"
    folder.mkdir(parents=True, exist_ok=True)
    row = {
        "what": "the overlay's accelerator",
        "accelerators": ["fpga"],
        "libraries": ["/opt/libtest_delegate.so"],
        "options": _options(board, mode),
        "compiled_only": True,
    }
    (folder / "real.json").write_text(json.dumps({"real": row}))


def _race(
    board: EmulatedFpga, environment: Mapping[str, str], folder: Path, files: OverlayFiles, **changes: object
) -> RaceReport:
    """Race ABS on the CPU and behind the overlay, in a process of its own."""
    model, golden = folder / "abs.tflite", folder / "golden.npz"
    model.write_bytes(unary_model())
    write_abs_golden(golden, "float32", "fpga")
    spec = RaceSpec(
        model="abs",
        version=1,
        variants=(
            RaceVariant(name="float32", path=str(model)),
            RaceVariant(name="fpga", path=str(model), requires=("real",), overlay=files),
        ),
        golden=str(golden),
        threads=(1,),
        budget_s=10.0,
        runtimes=("litert",),
        sysroot=str(board.root),
    ).model_copy(update=changes)
    (folder / "spec.json").write_bytes(encode(spec))
    done = subprocess.run(
        [sys.executable, "-m", "quick_race", "spec.json", "--output", "report.json"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return decode(RaceReport, (folder / "report.json").read_bytes(), 1 << 20)


def _result(report: RaceReport) -> tuple[Outcome, str]:
    (result,) = (one for one in report.candidates if one.variant == "fpga" and one.runtime == "litert")
    return result.outcome, result.reason or ""


def _serve(
    folder: Path,
    board: EmulatedFpga,
    files: OverlayFiles,
    environment: Mapping[str, str],
    standbys: tuple[Contender, ...] = (),
) -> ServingProcess:
    spec = ServeSpec(
        model=ModelName("abs"),
        version=1,
        candidate_id="litert/fpga/real/t1",
        variant_path=folder / "abs.tflite",
        plugin=Plugin(library=str(board.root / "opt/libtest_delegate.so"), options=_options(board)),
        standbys=standbys,
        overlay=files,
        sysroot=board.root,
        golden_path=folder / "golden.npz",
        socket_path=folder / "w.sock",
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return ServingProcess(spec, folder)


@pytest.mark.parametrize("tree", [None, "programs"])
def test_the_overlay_is_loaded_its_delegate_races_and_a_worker_serves_it(
    board: EmulatedFpga, environment: Mapping[str, str], tmp_path: Path, tree: str | None
) -> None:
    """The delegate has no device until then; the winner's overlay stays, and a worker loads it after a boot."""
    files = overlay(tmp_path / "files", tree=tree)
    variant = RaceVariant(name="fpga", path=str(tmp_path / "abs.tflite"), requires=("real",), overlay=files)

    report = _race(board, environment, tmp_path, files, variants=(variant,))

    assert report.placement == "litert/fpga/real/t1", report.candidates
    assert board.loaded == Path(files.bitstream).read_text()
    assert "overlay a" in report.conditions["fpga"]
    board.boot("22222222-boot")
    worker = _serve(tmp_path, board, files, environment)
    try:
        assert isinstance(ready := worker.next_event(), Ready), (ready, worker.stderr)
        assert board.loaded == Path(files.bitstream).read_text()
        assert len(board.programmed) == 2
    finally:
        worker.kill()


def test_when_another_candidate_wins_the_overlay_before_comes_back(
    board: EmulatedFpga, environment: Mapping[str, str], tmp_path: Path
) -> None:
    """The race leaves the FPGA as it was, whatever it loaded in between."""
    before = overlay(tmp_path / "files", "before", tree="programs")
    Fpga(board.root, TreeKernel(board)).hold(before, "other:1").close()
    _describe_delegate(board, "wrong")

    report = _race(board, environment, tmp_path, overlay(tmp_path / "files", "raced"))

    assert _result(report)[0] == Outcome.WRONG_OUTPUT
    assert report.placement is not None and "/float32/" in report.placement
    assert [text.split("\n")[1] for text in board.programmed] == ["before", "raced", "before"]
    assert board.applied is not None
    assert "overlay before" in report.conditions["fpga"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"ends_in": "write error"}, "in state 'write error'"),
        ({"board": "versal"}, "of another device"),
        ({"tree": "programs", "compatible": "corp,unknown"}, "dmesg"),
    ],
)
def test_an_overlay_that_cannot_be_loaded_is_its_candidates_reason(
    board: EmulatedFpga, environment: Mapping[str, str], tmp_path: Path, files: dict[str, str], words: str
) -> None:
    """The CPU's candidates race on, and one of them is placed."""
    report = _race(board, environment, tmp_path, overlay(tmp_path / "files", **files))  # type: ignore[arg-type]

    outcome, reason = _result(report)
    assert outcome == Outcome.UNAVAILABLE
    assert words in reason
    assert report.placement is not None and "/float32/" in report.placement


def test_an_fpga_that_serves_another_model_is_not_taken_from_it(
    board: EmulatedFpga, environment: Mapping[str, str], tmp_path: Path
) -> None:
    """By the agent's record, or by the other worker's hold alone: its candidates are out, with whom it serves."""
    other = overlay(tmp_path / "files", "other", tree="programs")
    with Fpga(board.root, TreeKernel(board)).hold(other, "cats:3"):
        for reserved, words in (("the FPGA serves dogs:1", "dogs:1"), (None, "the FPGA serves cats:3")):
            report = _race(board, environment, tmp_path, overlay(tmp_path / "files", "mine"), fpga_reserved=reserved)

            outcome, reason = _result(report)
            assert outcome == Outcome.UNAVAILABLE
            assert words in reason
            assert report.placement is not None
    assert board.loaded == Path(other.bitstream).read_text()
    assert len(board.programmed) == 1


@pytest.mark.parametrize(("gone", "words"), [("delegate", "was not found"), ("fpga", "no FPGA was found here")])
def test_without_the_delegate_or_the_fpga_nothing_is_loaded(
    board: EmulatedFpga, environment: Mapping[str, str], tmp_path: Path, gone: str, words: str
) -> None:
    """What is missing is told, and the FPGA is left alone."""
    shutil.rmtree(board.root / ("opt" if gone == "delegate" else MANAGER))

    report = _race(board, environment, tmp_path, overlay(tmp_path / "files"))

    outcome, reason = _result(report)
    assert outcome == Outcome.UNAVAILABLE
    assert words in reason
    assert board.calls == []


def test_a_worker_whose_overlay_fails_serves_from_its_standby(
    board: EmulatedFpga, environment: Mapping[str, str], tmp_path: Path
) -> None:
    """Degraded, with the FPGA's state as the reason."""
    files = overlay(tmp_path / "files", ends_in="write error")
    (tmp_path / "abs.tflite").write_bytes(unary_model())
    write_abs_golden(tmp_path / "golden.npz", "fpga", "float32")
    standby = Contender(candidate_id="litert/float32/none/t1", variant_path=tmp_path / "abs.tflite")
    worker = _serve(tmp_path, board, files, environment, (standby,))
    try:
        assert isinstance(ready := worker.next_event(), Ready), (ready, worker.stderr)
        degraded = worker.next_event()
        assert isinstance(degraded, Degraded), degraded
        assert degraded.placement == standby.candidate_id
        assert "in state 'write error'" in degraded.reason
    finally:
        worker.kill()


def test_a_worker_whose_overlay_fails_says_so_and_ends(
    board: EmulatedFpga, environment: Mapping[str, str], tmp_path: Path
) -> None:
    """Without a standby."""
    files = overlay(tmp_path / "files", ends_in="write error")
    (tmp_path / "abs.tflite").write_bytes(unary_model())
    write_abs_golden(tmp_path / "golden.npz", "fpga")
    worker = _serve(tmp_path, board, files, environment)
    try:
        failed = worker.next_event()
        assert isinstance(failed, Failed), failed
        assert failed.family == "rejected"
        assert "in state 'write error'" in failed.reason
        assert worker.process.wait(20) == 65
    finally:
        worker.kill()
