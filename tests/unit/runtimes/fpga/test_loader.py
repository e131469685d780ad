"""The loader's promises beyond one load: holds, locks, kills at every sync and call, files, and damaged records."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from emulated_fpga import OURS, EmulatedFpga, TreeKernel, device_tree, overlay
from killing import Killed, every_kill, killed_at
from regatta_protocol.errors import Rejected, Retryable
from regatta_runtimes.fpga.files import FirmwareFolder
from regatta_runtimes.fpga.loader import Fpga, FpgaLimits
from regatta_runtimes.fpga.overlay import OverlayFiles

QUICK = FpgaLimits(call_s=5.0, operating_s=0.3, lock_s=0.3)


@pytest.fixture
def board(tmp_path: Path) -> EmulatedFpga:
    return EmulatedFpga(tmp_path / "board")


@pytest.fixture
def fpga(board: EmulatedFpga) -> Fpga:
    return Fpga(board.root, TreeKernel(board), QUICK)


def _text(files: OverlayFiles) -> str:
    return Path(files.bitstream).read_text()


def test_what_is_in_use_is_not_taken_away_and_what_is_shared_is_shared(
    board: EmulatedFpga, fpga: Fpga, tmp_path: Path
) -> None:
    """One overlay serves two models; another one waits until both are gone, and is told whom it waits for."""
    mine, other = overlay(tmp_path / "files", "mine"), overlay(tmp_path / "files", "other")
    first, second = fpga.hold(mine, "cats:1"), fpga.hold(mine, "dogs:2")

    for hold in (first, second):
        with pytest.raises(Retryable, match=r"the FPGA serves dogs:2 with overlay mine; .*other.* for birds:1"):
            fpga.hold(other, "birds:1")
        assert board.loaded == _text(mine)
        hold.close()
    fpga.hold(other, "birds:1").close()

    assert board.loaded == _text(other)


def test_giving_back_restores_what_was_there_unless_it_is_in_use_or_changed(
    board: EmulatedFpga, fpga: Fpga, tmp_path: Path
) -> None:
    """After a race: the overlay before is loaded again, but never under another user or over another change."""
    before, raced, third = (overlay(tmp_path / "files", name, tree="programs") for name in ("before", "raced", "third"))
    fpga.hold(before, "m:1").close()

    fpga.hold(raced, "m:2").give_back()
    assert board.loaded == _text(before)
    hold = fpga.hold(raced, "m:2")
    with fpga.hold(raced, "n:1"):
        hold.give_back()
        assert board.loaded == _text(raced)
    hold = fpga.hold(raced, "m:2")
    hold.close()
    fpga.hold(third, "n:1").close()
    hold.give_back()
    assert board.loaded == _text(third)


def test_giving_back_the_first_overlay_takes_its_device_tree_out(
    board: EmulatedFpga, fpga: Fpga, tmp_path: Path
) -> None:
    """There was none before; the bitstream itself cannot be unloaded."""
    fpga.hold(overlay(tmp_path / "files", tree="programs"), "m:1").give_back()

    assert not (board.root / OURS).exists()


def test_one_process_at_a_time_changes_the_fpga(board: EmulatedFpga, fpga: Fpga, tmp_path: Path) -> None:
    """The second waits, for a bounded time."""
    board.hold_back.clear()
    slow = threading.Thread(target=lambda: fpga.hold(overlay(tmp_path / "files", "slow"), "m:1").close())
    started = threading.Event()
    board.on_call = lambda number: started.set()
    slow.start()
    assert started.wait(10)

    with pytest.raises(Retryable, match=r"another process has been changing the FPGA for 0\.3 s"):
        fpga.hold(overlay(tmp_path / "files", "late"), "m:2")

    board.hold_back.set()
    slow.join(10)


@contextmanager
def _killed_at_call(board: EmulatedFpga, point: int, *, after: bool) -> Iterator[None]:
    """Raise Killed before, or after, the call of the kernel with this number, counted from 0."""
    first, real = len(board.calls), board.call

    def call(op: str, path: str, text: str = "") -> int:
        number = len(board.calls) - first
        if number == point and not after:
            raise Killed
        answer = real(op, path, text)
        if number == point:
            raise Killed
        return answer

    board.call = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        board.call = real  # type: ignore[method-assign]


@pytest.mark.parametrize("following", ["old", "new"])
@pytest.mark.parametrize("kind", ["sync", "before", "after"])
def test_killed_at_any_step_the_next_call_recovers(
    board: EmulatedFpga, fpga: Fpga, tmp_path: Path, kind: str, following: str
) -> None:
    """At every sync of a file, and before and after every call of the kernel; leftovers go with the next change."""

    def run(point: int) -> None:
        old = overlay(tmp_path / "files", "old", tree="programs")
        new = overlay(tmp_path / "files", f"new-{point}", tree="programs")  # its files are to be installed too
        fpga.hold(old, "m:1").close()
        killer = killed_at(point) if kind == "sync" else _killed_at_call(board, point, after=kind == "after")
        try:
            with killer:
                fpga.hold(new, "m:2").close()
        finally:
            wanted = old if following == "old" else new
            fpga.hold(wanted, "m:3").close()
            assert board.loaded == _text(wanted)
            assert board.applied is not None
            fpga.hold(overlay(tmp_path / "files", "next", tree="programs"), "m:4").close()  # a change clears up
            left = list((board.root / "lib/firmware/regatta").glob("*.*"))
            assert len(left) <= 5, left

    assert every_kill(run) >= 4


def test_a_damaged_record_is_not_trusted(board: EmulatedFpga, fpga: Fpga, tmp_path: Path) -> None:
    """The overlay is loaded again."""
    files = overlay(tmp_path / "files")
    fpga.hold(files, "m:1").close()
    (board.root / "lib/firmware/regatta/record.json").write_bytes(b"{")

    fpga.hold(files, "m:1").close()

    assert len(board.programmed) == 2


def test_a_damaged_file_in_place_is_written_anew(board: EmulatedFpga, fpga: Fpga, tmp_path: Path) -> None:
    """Its name is its content's digest, so the difference shows."""
    files = overlay(tmp_path / "files")
    fpga.hold(files, "m:1").close()
    (installed,) = (board.root / "lib/firmware/regatta").glob("*.bin")
    installed.write_bytes(bytes(len(_text(files))))

    fpga.hold(files, "m:1").close()

    assert installed.read_text() == _text(files)


@pytest.mark.parametrize(
    ("bitstream", "tree", "words"),
    [
        (None, None, "cannot be read"),
        (b"", None, "the bitstream of overlay a is empty"),
        (b"x", b"", "the device tree of overlay a is empty"),
        (b"x", b"/dts-v1/;" + bytes(40), "no compiled device-tree overlay"),
        (b"x", device_tree("design.bit.bin"), "names the bitstream 'design.bit.bin' instead of 'regatta/"),
    ],
)
def test_bad_files_are_refused_before_anything_is_changed(
    board: EmulatedFpga, fpga: Fpga, tmp_path: Path, bitstream: bytes | None, tree: bytes | None, words: str
) -> None:
    """Each with its reason."""
    if bitstream is not None:
        (tmp_path / "a.bin").write_bytes(bitstream)
    if tree is not None:
        (tmp_path / "a.dtbo").write_bytes(tree)
    files = OverlayFiles(
        name="a",
        bitstream=str(tmp_path / "a.bin"),
        device_tree=None if tree is None else str(tmp_path / "a.dtbo"),
        delegate="real",
    )

    with pytest.raises(Rejected, match=words):
        fpga.hold(files, "m:1")

    assert board.calls == []


def test_a_file_over_the_limit_is_refused(tmp_path: Path) -> None:
    """Before it is read whole."""
    with (tmp_path / "a.bin").open("wb") as file:
        file.truncate((256 << 20) + 1)  # a hole: it takes no space
    folder = FirmwareFolder(tmp_path)
    folder.prepare()

    with pytest.raises(Rejected, match="longer than the limit"):
        folder.install(OverlayFiles(name="a", bitstream=str(tmp_path / "a.bin"), delegate="real"), "m:1")
