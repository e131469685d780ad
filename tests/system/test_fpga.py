"""The whole agent on a board with an emulated FPGA: fetched, loaded, raced, served, and kept from another model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from device_rig import MODEL
from emulated_fpga import MANAGER, EmulatedFpga, build_shim, overlay, shim
from real_rig import RealRig
from regatta_protocol.codec import encode
from regatta_protocol.ids import ModelName, ModelRef, digest_of_bytes
from regatta_protocol.manifest import FileRef, Manifest, Overlay, Variant, target_path
from regatta_protocol.values import TensorSpec
from tiny_models import unary_model, write_abs_golden

pytestmark = pytest.mark.system

OTHER = ModelName("other")


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedFpga]:
    """A board whose delegate works once its FPGA does; the agent's children meet its kernel."""
    library = build_shim(tmp_path)
    if library is None:
        pytest.skip("gcc is not installed, which builds the test delegate and the emulator's library")
    board = EmulatedFpga(tmp_path / "board")
    delegate, rows = board.root / "opt/libmine.so", board.root / "etc/regatta/delegates.d/mine.json"
    for path in (delegate, rows):
        path.parent.mkdir(parents=True)
    source = Path(__file__).resolve().parents[1] / "delegates" / "test_delegate.c"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", delegate, source, "-lm"], check=True, timeout=60)
    row = {
        "what": "the design of the test",
        "accelerators": ["fpga"],
        "libraries": ["/opt/libmine.so"],
        "options": {"mode": "real", "needs": str(board.root / MANAGER / "state")},
        "compiled_only": True,
    }
    rows.write_text(json.dumps({"mine": row}))
    with shim(library, board) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield board


@pytest.fixture
def rig(tmp_path: Path, board: EmulatedFpga) -> Iterator[RealRig]:
    made = RealRig(tmp_path, race_budget_s=6.0, race_threads=[1], telemetry_period_s=1.0, sysroot=board.root)
    made.start()
    yield made
    made.loop.stopping = "the test is over"
    made.loop.stop()
    made.processes.close()


def _push(rig: RealRig, folder: Path, model: ModelName, design: str) -> str:
    """Push a version that runs on the FPGA alone; return its bitstream."""
    files = overlay(folder / "designs", design, tree="programs")
    assert files.device_tree is not None
    (folder / "abs.tflite").write_bytes(unary_model())
    write_abs_golden(folder / "abs.npz", "fpga")
    paths = [folder / "abs.tflite", folder / "abs.npz", Path(files.bitstream), Path(files.device_tree)]
    blobs = [path.read_bytes() for path in paths]
    file, golden, bitstream, dtbo = (FileRef(digest=digest_of_bytes(one), size_bytes=len(one)) for one in blobs)
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 4))
    variant = Variant(
        name="fpga",
        file=file,
        precision="float32",
        inputs=(spec,),
        outputs=(spec,),
        requires=("mine",),
        overlay=Overlay(name=design, bitstream=bitstream, dtbo=dtbo, delegate="mine"),
    )
    manifest = Manifest(name=model, version=1, created_at="2026-01-01T00:00:00Z", variants=(variant,), golden=golden)
    text = encode(manifest)
    rig.repository.add_target(target_path(manifest.ref), text)
    rig.fleet.blobs |= {digest_of_bytes(blob): blob for blob in (*blobs, text)}
    return blobs[2].decode()


def _serves(rig: RealRig) -> Callable[[], bool]:
    return lambda: rig.state(1) == "committed" and any(w.ready for w in rig.workers().values())


def test_a_model_serves_from_the_fpga_and_another_ones_overlay_does_not_take_it_away(
    rig: RealRig, board: EmulatedFpga, tmp_path: Path
) -> None:
    """The second model fails and says whom the FPGA serves; a worker that was killed finds its overlay again."""
    bitstream = _push(rig, tmp_path, MODEL, "first")
    rig.fleet.assign(1, trial_s=0.2)
    assert rig.live(_serves(rig)), rig.install(1)
    assert rig.install(1).placement in ("litert/fpga/mine/t1", "tflite/fpga/mine/t1")
    assert rig.status_of(f"/v2/models/{MODEL}/ready") == 200
    assert board.loaded == bitstream

    _push(rig, tmp_path, OTHER, "second")
    rig.fleet.assign(1, "r1", trial_s=0.2, other=1)
    refused = ModelRef(OTHER, 1)
    assert rig.live(lambda: getattr(rig.loop.record.find(refused), "state", None) == "failed"), rig.loop.record

    assert f"the FPGA serves {MODEL}:1 with overlay first" in (rig.install(1, OTHER).reason or "")
    os.kill(rig.worker_pid(), signal.SIGKILL)
    assert rig.live(lambda: rig.install(1).deaths == 1)
    assert rig.live(_serves(rig)), rig.install(1)
    assert rig.status_of("/v2/health/ready") == 200
    assert board.programmed == [bitstream]
