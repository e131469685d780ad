"""Loading an overlay, one suite over the emulator in this process and over real system calls of another process."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from emulated_fpga import MANAGER, OURS, TREES, EmulatedFpga, TreeKernel, build_shim, device_tree, overlay, shim
from regatta_protocol.errors import Misuse, RegattaError, Rejected, Retryable
from regatta_protocol.plain import to_json
from regatta_runtimes.fpga.loader import Fpga, FpgaLimits
from regatta_runtimes.fpga.overlay import OverlayFiles

FAMILIES = (Retryable, Rejected, Misuse)
SHORT_S = 0.4  # of patience, in tests that wait it out
PROGRAM = """
import json, sys
from pathlib import Path
from regatta_protocol.errors import Misuse, RegattaError, Rejected, Retryable
from regatta_runtimes.fpga.loader import Fpga, FpgaLimits
from regatta_runtimes.fpga.overlay import OverlayFiles
root, files, patience_s = sys.argv[1:]
limits = FpgaLimits(call_s=float(patience_s), operating_s=float(patience_s), lock_s=float(patience_s))
try:
    Fpga(Path(root), limits=limits).hold(OverlayFiles(**json.loads(files)), "m:1").close()
except RegattaError as err:
    family = next(one.__name__ for one in (Retryable, Rejected, Misuse) if isinstance(err, one))
    print(json.dumps([family, str(err)]))
else:
    print("null")
"""


@dataclass(frozen=True)
class Ended:
    """How a load failed; `family` is None when it did not."""

    family: str | None = None
    message: str = ""


Load = Callable[..., Ended]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def board(tmp_path: Path) -> EmulatedFpga:
    return EmulatedFpga(tmp_path / "board")


def _in_process(board: EmulatedFpga, files: OverlayFiles, patience_s: float = 20.0) -> Ended:
    limits = FpgaLimits(call_s=patience_s, operating_s=patience_s, lock_s=patience_s)
    try:
        Fpga(board.root, TreeKernel(board), limits).hold(files, "m:1").close()
    except RegattaError as err:
        return Ended(next(family.__name__ for family in FAMILIES if isinstance(err, family)), str(err))
    return Ended()


def _command(board: EmulatedFpga, files: OverlayFiles, patience_s: float) -> list[str]:
    return [sys.executable, "-c", PROGRAM, str(board.root), to_json(files).decode(), str(patience_s)]


@pytest.fixture(params=["in-process", "system-calls"])
def load(request: pytest.FixtureRequest, board: EmulatedFpga, library: Path | None) -> Iterator[Load]:
    """Loads an overlay on the board and tells how that ended."""
    if request.param == "in-process":
        yield lambda files, patience_s=20.0: _in_process(board, files, patience_s)
        return
    if library is None:
        pytest.skip("gcc is not installed, which builds the library that brings system calls to the emulator")
    with shim(library, board) as environment:

        def run(files: OverlayFiles, patience_s: float = 20.0) -> Ended:
            path = os.pathsep.join(path for path in sys.path if path)
            done = subprocess.run(
                _command(board, files, patience_s),
                env={**os.environ, **environment, "PYTHONPATH": path},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return Ended(*(json.loads(done.stdout) or ()))

        yield run


@pytest.mark.parametrize("tree", [None, "programs", "follows"])
def test_an_overlay_is_loaded_checked_and_then_left_alone(
    board: EmulatedFpga, load: Load, tmp_path: Path, tree: str | None
) -> None:
    """Bitstream alone, with a device tree that names it, with one that follows; the second call touches nothing."""
    files = overlay(tmp_path / "files", tree=tree, flags=0x21)

    assert load(files) == Ended()

    assert board.loaded == Path(files.bitstream).read_text()
    assert (board.applied is not None) == (tree is not None)
    assert board.shows(f"{MANAGER}/flags") == "21"
    before = list(board.calls)
    assert load(files) == Ended()
    assert board.calls == before


def test_another_overlay_takes_the_place_of_the_first(board: EmulatedFpga, load: Load, tmp_path: Path) -> None:
    """The old device tree is taken out first: a region takes one at a time. Both stay on disk, older ones go."""
    for name in ("a", "b", "c"):
        assert load(overlay(tmp_path / "files", name, tree="programs")) == Ended()

    assert board.loaded == (tmp_path / "files/c.bin").read_text()
    assert [op for op, _, _ in board.calls] == ["write", "make", "write", *["remove", "write", "make", "write"] * 2]
    assert len(list((board.root / "lib/firmware/regatta").glob("*.bin"))) == 2


# what goes wrong with the second overlay -> the family of the error, and what it says
FAILURES: dict[str, tuple[str, str]] = {
    "write init error": ("Rejected", "of another device"),
    "write error": ("Rejected", "damaged"),
    "write complete error": ("Rejected", "did not start"),
    "firmware request error": ("Misuse", "firmware_class.path"),
    "another error": ("Rejected", "not known here"),
    "power off": ("Retryable", "power domain"),
    "reset": ("Retryable", "reset"),
    "unknown": ("Retryable", "cannot tell"),
    "write": ("Retryable", "still being written"),
    "write complete": ("Retryable", "still starting"),
}


@pytest.mark.parametrize("tree", [None, "programs"])
@pytest.mark.parametrize("state", FAILURES)
def test_each_state_that_is_not_operating_is_told_and_the_overlay_before_is_back(
    board: EmulatedFpga, load: Load, tmp_path: Path, state: str, tree: str | None
) -> None:
    """Error states at once; states in between when the time is up; the FPGA then runs what it ran before."""
    good = overlay(tmp_path / "files", "good", tree=tree)
    assert load(good) == Ended()
    family, words = FAILURES[state]

    ended = load(overlay(tmp_path / "files", "bad", ends_in=state, tree=tree), SHORT_S)

    assert ended.family == family, ended
    assert words in ended.message
    assert repr(state) in ended.message
    assert "overlay good" in ended.message and "loaded again" in ended.message
    assert board.loaded == Path(good.bitstream).read_text()
    assert (board.applied is not None) == (tree is not None)
    assert load(good) == Ended()


# the errno of a call -> the family, and what the error says
ERRNOS = {
    errno.EACCES: ("Misuse", "docs/fpga.md, Permissions"),
    errno.EPERM: ("Misuse", "udev rules"),
    errno.EROFS: ("Misuse", "fpga.conf"),
    errno.EBUSY: ("Retryable", "tried again"),
    errno.ENOMEM: ("Retryable", "tried again"),
    errno.ENODEV: ("Retryable", "dmesg"),
    errno.EINVAL: ("Rejected", "not for this board"),
}


@pytest.mark.parametrize("number", ERRNOS, ids=[errno.errorcode[number] for number in ERRNOS])
@pytest.mark.parametrize("path", [f"{MANAGER}/firmware", f"{OURS}/path", OURS, f"{MANAGER}/flags"])
def test_each_errno_of_each_call_is_told_and_the_overlay_before_is_back(
    board: EmulatedFpga, load: Load, tmp_path: Path, path: str, number: int
) -> None:
    """The message names the call and what to do, by whose fault it is."""
    good = overlay(tmp_path / "files", "good", tree="follows" if path.startswith(TREES) else None)
    assert load(overlay(tmp_path / "files", "good")) == Ended()
    board.answers[path] = number
    family, words = ERRNOS[number]

    ended = load(overlay(tmp_path / "files", "bad", tree="follows"))

    assert ended.family == family, ended
    assert words in ended.message and os.strerror(number) in ended.message
    assert "loaded again" in ended.message
    assert board.loaded == Path(good.bitstream).read_text()


def test_a_rollback_that_fails_tells_both_reasons_and_the_next_call_recovers(
    board: EmulatedFpga, load: Load, tmp_path: Path
) -> None:
    """The FPGA is left without an overlay, and the error says why the one before did not come back."""
    good = overlay(tmp_path / "files", "good", tree="programs")
    assert load(good) == Ended()
    board.always[OURS] = errno.EBUSY

    ended = load(overlay(tmp_path / "files", "bad", ends_in="write error", tree="programs"))

    assert ended.family == "Retryable"
    assert "cannot remove our device-tree overlay" in ended.message
    assert "going back to overlay good" in ended.message and "failed" in ended.message
    board.always.clear()
    assert load(good) == Ended()
    assert board.loaded == Path(good.bitstream).read_text()


def test_the_first_overlay_of_all_that_fails_leaves_none(board: EmulatedFpga, load: Load, tmp_path: Path) -> None:
    """There is nothing to go back to, and no half-applied device tree stays."""
    ended = load(overlay(tmp_path / "files", "bad", ends_in="write error", tree="programs"))

    assert ended.family == "Rejected"
    assert "no overlay of ours is loaded now" in ended.message
    assert not (board.root / OURS).exists()


@pytest.mark.parametrize("tells", [True, False], ids=["errno", "older kernel"])
def test_a_device_tree_that_does_not_fit_is_told(board: EmulatedFpga, load: Load, tmp_path: Path, tells: bool) -> None:
    """Older kernels of Xilinx let the write succeed and show it in `status` alone."""
    good = overlay(tmp_path / "files", "good", tree="programs")
    assert load(good) == Ended()
    board.tells_refusal = tells

    ended = load(overlay(tmp_path / "files", "bad", tree="programs", compatible="corp,unknown"))

    assert ended.family == "Rejected"
    assert "dmesg" in ended.message and "loaded again" in ended.message
    assert board.loaded == Path(good.bitstream).read_text()


def test_a_bitstream_of_another_board_is_refused(board: EmulatedFpga, load: Load, tmp_path: Path) -> None:
    """By the FPGA itself, in write init."""
    ended = load(overlay(tmp_path / "files", board="versal", tree="programs"))

    assert ended.family == "Rejected"
    assert "of another device" in ended.message


def test_an_fpga_that_goes_away_is_told(board: EmulatedFpga, load: Load, tmp_path: Path) -> None:
    """Its driver was unloaded: both reasons, to be tried again."""
    assert load(overlay(tmp_path / "files", "good")) == Ended()
    board.vanishes = True

    ended = load(overlay(tmp_path / "files", "bad"))

    assert ended.family == "Retryable"
    assert "gone from /sys" in ended.message
    assert "going back to overlay good" in ended.message and "FPGA manager driver" in ended.message


def test_a_call_that_does_not_return_is_not_waited_for(board: EmulatedFpga, load: Load, tmp_path: Path) -> None:
    """It goes on in the kernel, so nothing else is tried; once it is done, the next call recovers."""
    good = overlay(tmp_path / "files", "good")
    assert load(good) == Ended()
    board.hold_back.clear()

    slow = overlay(tmp_path / "files", "slow")
    ended = load(slow, SHORT_S)

    assert ended.family == "Retryable"
    assert "has not finished to load" in ended.message
    board.hold_back.set()
    assert load(slow) == Ended()
    assert board.loaded == Path(slow.bitstream).read_text()


def test_after_a_boot_nothing_is_taken_for_loaded(board: EmulatedFpga, load: Load, tmp_path: Path) -> None:
    """The record outlives the boot, the FPGA's content does not, even when it says that it operates."""
    files = overlay(tmp_path / "files", tree="programs")
    assert load(files) == Ended()
    board.boot("22222222-boot")
    board.put(f"{MANAGER}/state", "operating")  # with what the boot loader put there

    assert load(files) == Ended()

    assert len(board.programmed) == 2
    assert board.applied is not None


def test_another_programs_overlay_is_left_alone(board: EmulatedFpga, load: Load, tmp_path: Path) -> None:
    """An FPGA that dfx-mgr loaded is not taken from it; overlays that program nothing do not matter."""
    for name, blob in (("camera", device_tree(None)), ("k26-starter-kits", device_tree("k26.bit.bin"))):
        (board.root / f"lib/firmware/{name}.dtbo").write_bytes(blob)
        board.put(f"{TREES}/{name}/status", "applied")
        board.put(f"{TREES}/{name}/path", f"{name}.dtbo")

    ended = load(overlay(tmp_path / "files"))

    assert ended.family == "Misuse"
    assert "overlay k26-starter-kits of another program" in ended.message and "camera" not in ended.message
    assert board.calls == []


@pytest.mark.parametrize(
    ("setting", "tree", "words"),
    [
        ({"configfs": False}, "programs", "CONFIG_OF_CONFIGFS"),
        ({"firmware_attribute": False}, None, "no `firmware` attribute"),
        ({"firmware_attribute": False}, "follows", "no `firmware` attribute"),
    ],
)
def test_a_kernel_that_cannot_is_told_before_anything_is_changed(
    tmp_path: Path, setting: dict[str, bool], tree: str, words: str
) -> None:
    """With what the kernel lacks."""
    board = EmulatedFpga(tmp_path / "lacking", **setting)

    ended = _in_process(board, overlay(tmp_path / "files", tree=tree))

    assert ended.family == "Misuse"
    assert words in ended.message
    assert board.calls == []


def test_a_kernel_without_the_firmware_attribute_loads_by_device_tree(tmp_path: Path) -> None:
    """The mainline kernel's way: configfs or not, the region programs."""
    board = EmulatedFpga(tmp_path / "mainline", firmware_attribute=False)

    assert _in_process(board, overlay(tmp_path / "files", tree="programs")) == Ended()
    assert board.loaded is not None


@pytest.mark.parametrize("tree", [None, "programs"])
def test_killed_at_any_call_of_the_kernel_the_next_process_recovers(
    board: EmulatedFpga, library: Path | None, tmp_path: Path, tree: str | None
) -> None:
    """SIGKILL from outside when a call comes in, at each of them: the next load, of the same or the old, succeeds."""
    if library is None:
        pytest.skip("gcc is not installed, which builds the library that brings system calls to the emulator")
    old, new = (overlay(tmp_path / "files", name, tree=tree) for name in ("old", "new"))
    path = os.pathsep.join(path for path in sys.path if path)
    with shim(library, board) as environment:
        for point in range(1, 5 if tree else 3):
            for following in (old, new):
                assert _in_process(board, old) == Ended()
                process = subprocess.Popen(
                    _command(board, new, 20.0), env={**os.environ, **environment, "PYTHONPATH": path}
                )
                first, pid = len(board.calls), process.pid
                board.on_call = lambda number, at=first + point, pid=pid: (  # type: ignore[misc]
                    os.kill(pid, signal.SIGKILL) if number == at else None
                )
                assert process.wait(60) == -signal.SIGKILL, point
                board.on_call = lambda number: None

                assert _in_process(board, following) == Ended()
                assert board.loaded == Path(following.bitstream).read_text()


@pytest.fixture
def closed_board() -> Iterator[EmulatedFpga]:
    """A board whose /sys belongs to another user than this process, really."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # pytest's own folders are closed to other users
        board = EmulatedFpga(Path(folder) / "board")
        for path in (board.root / MANAGER).iterdir() if os.geteuid() else ():
            path.chmod(0o444)
        privileged = os.geteuid() == 0
        try:
            yield board
        finally:
            if privileged:
                os.seteuid(0)


def _give_up_privileges() -> None:
    if os.geteuid() == 0:
        os.seteuid(65_534)


def test_without_the_right_to_write_to_sys_the_message_says_what_to_install(closed_board: EmulatedFpga) -> None:
    """A real EACCES of an attribute."""
    files = overlay(closed_board.root / "files")
    (closed_board.root / "lib/firmware/regatta").mkdir()
    (closed_board.root / "lib/firmware/regatta").chmod(0o777)
    _give_up_privileges()

    with pytest.raises(Misuse, match=r"Permission denied.*fpga\.conf.*udev.*no overlay of ours is loaded now"):
        Fpga(closed_board.root).hold(files, "m:1")


def test_without_the_right_to_write_firmware_the_message_says_what_to_install(closed_board: EmulatedFpga) -> None:
    """A real EACCES of /lib/firmware, before anything is changed."""
    files = overlay(closed_board.root / "files")
    (closed_board.root / "lib/firmware").chmod(0o555)
    _give_up_privileges()

    with pytest.raises(Misuse, match=r"cannot make .*Permission denied.*fpga\.conf"):
        Fpga(closed_board.root).hold(files, "m:1")
