"""Loads an overlay and keeps it loaded while somebody uses it; a change that fails goes back to the overlay before.

`Fpga.hold` returns once the overlay operates. Invariants:
- an overlay that is loaded already is left alone, and one that another process uses is never taken away;
- the record says what is about to happen before it happens, so that the next call recovers from a kill at any step;
- after a failure the overlay before is loaded and checked again, or the error says both reasons.

Not here: what to load and when (the race and the serving worker), and delegates.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from regatta_protocol.errors import Misuse, RegattaError, Rejected, Retryable
from regatta_runtimes.fpga.fdt import bitstream_name
from regatta_runtimes.fpga.files import FirmwareFolder
from regatta_runtimes.fpga.kernel import FORBIDDEN, FileKernel, Kernel, StillBusy, bounded, explained
from regatta_runtimes.fpga.overlay import MAX_TREE_BYTES, OverlayFiles
from regatta_runtimes.fpga.plan import (
    ApplyTree,
    Await,
    FpgaFacts,
    Loaded,
    OverlayRecord,
    Program,
    RemoveTree,
    Step,
    WriteFlags,
    busy_with,
    is_settled,
    previous_of,
    steps_to,
    trouble_of,
)

__all__ = ["Fpga", "FpgaLimits", "Hold"]

logger = logging.getLogger(__name__)

_MANAGERS = "sys/class/fpga_manager"
_TREES = "sys/kernel/config/device-tree/overlays"
_OURS = f"{_TREES}/regatta"
_BOOT = "proc/sys/kernel/random/boot_id"


@dataclass(frozen=True)
class FpgaLimits:
    """Bounds of patience, in seconds. A full bitstream takes 0.1 to 1 s, devices that appear with it some more."""

    call_s: float = 20.0  # one write into the kernel: programming, and probing the drivers of the new devices
    operating_s: float = 10.0  # until the FPGA operates after that
    lock_s: float = 30.0  # for another process that is changing the FPGA
    poll_s: float = 0.02


class Hold:
    """An overlay in use by this process: nobody takes it away before `close`, or before the process ends."""

    def __init__(self, fpga: Fpga, overlay: Loaded, before: Loaded | None, descriptor: int) -> None:
        self._fpga = fpga
        self._descriptor: int | None = descriptor
        self.overlay = overlay
        self.before = before  # what was loaded when this began

    def close(self) -> None:
        """Use it no longer; it stays loaded. May be called twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def give_back(self) -> None:
        """Use it no longer, and load again what was loaded before, unless somebody else uses this one by now.

        Raises:
            RegattaError: as `Fpga.hold`.
        """
        self.close()
        self._fpga.go_back(self.overlay, self.before)

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Fpga:
    """The first FPGA of the board under `root`."""

    def __init__(self, root: Path, kernel: Kernel | None = None, limits: FpgaLimits = FpgaLimits()) -> None:
        self._root = root
        self._kernel: Kernel = FileKernel(root) if kernel is None else kernel
        self._limits = limits
        self._folder = FirmwareFolder(root)

    def hold(self, files: OverlayFiles, user: str) -> Hold:
        """Return a hold on the overlay, loaded and operating.

        Args:
            user: the model that it is for, told to others who find the FPGA in use.

        Raises:
            Rejected: when a file is bad, or the FPGA or the device tree refuses it.
            Retryable: when the FPGA serves another model, is busy, gone, or not done in time.
            Misuse: when this process or this kernel cannot do it; the message says what to set.
        """
        self._folder.prepare()
        with self._folder.locked(self._limits.lock_s):
            record, facts = self._folder.read(), self.facts()
            wanted = self._folder.install(files, user)
            if is_settled(record, wanted, facts):
                used = self._folder.use(alone=False)
                if used is None:
                    raise Retryable(f"{wanted} is being changed by another process: it is tried again")
                if record.loaded != wanted:  # loaded for another model or version
                    self._folder.write(OverlayRecord(boot=facts.boot, loaded=wanted))
                return Hold(self, wanted, record.loaded, used)
            used = self._sole_use(wanted, record)
            try:
                self._change(wanted, record, facts)
            except BaseException:
                os.close(used)
                raise
            self._folder.share(used)
            return Hold(self, wanted, previous_of(record, facts), used)

    def go_back(self, overlay: Loaded, before: Loaded | None) -> None:
        """Load `before` again when `overlay` is what is loaded and nobody uses it.

        Raises:
            RegattaError: as `hold`.
        """
        with self._folder.locked(self._limits.lock_s):
            record, facts = self._folder.read(), self.facts()
            if overlay.same_as(before) or not overlay.same_as(record.loaded):
                return
            used = self._folder.use(alone=True)
            if used is None:
                return
            try:
                self._change(before, record, facts)
            finally:
                os.close(used)

    def facts(self) -> FpgaFacts:
        """Return what the kernel shows now."""
        managers = [name for name in self._kernel.names(_MANAGERS) or () if name.startswith("fpga")]
        manager = managers[0] if managers else None
        attributes = self._kernel.names(f"{_MANAGERS}/{manager}") or () if manager is not None else ()
        trees = self._kernel.names(_TREES)
        ours = None
        if trees is not None and Path(_OURS).name in trees:
            ours = self._kernel.read(f"{_OURS}/status") or "unapplied"
        return FpgaFacts(
            manager=manager,
            state=None if manager is None else self._kernel.read(f"{_MANAGERS}/{manager}/state"),
            offers_firmware="firmware" in attributes,
            offers_flags="flags" in attributes,
            offers_trees=trees is not None,
            tree=ours,
            foreign=tuple(name for name in trees or () if f"{_TREES}/{name}" != _OURS and self._programs(name)),
            boot=self._kernel.read(_BOOT),
        )

    def _programs(self, name: str) -> bool:
        """Return whether another program's device-tree overlay put a bitstream into the FPGA, as far as it shows."""
        if self._kernel.read(f"{_TREES}/{name}/status") != "applied":
            return False
        file = self._kernel.read(f"{_TREES}/{name}/path")
        if file is None:
            return False
        try:
            with (self._root / "lib/firmware" / file.lstrip("/")).open("rb") as blob:
                return bitstream_name(blob.read(MAX_TREE_BYTES)) is not None
        except (OSError, Rejected):
            return False

    def _sole_use(self, wanted: Loaded, record: OverlayRecord) -> int:
        used = self._folder.use(alone=True)
        if used is None:
            user, name = ("another model", "another overlay")
            if record.loaded is not None:
                user, name = record.loaded.user or user, record.loaded.name
            raise Retryable(
                f"the FPGA serves {user} with overlay {name}; {wanted} for {wanted.user} cannot be loaded beside it: "
                f"stop {user} on this device first, or push both models with one overlay"
            )
        return used

    def _change(self, wanted: Loaded | None, record: OverlayRecord, facts: FpgaFacts) -> None:
        """Load `wanted`; on failure go back to what was loaded before."""
        previous = previous_of(record, facts)
        steps_to(wanted, facts)  # what cannot be done is told before anything is changed
        self._await_quiet()
        self._folder.write(OverlayRecord(boot=facts.boot, loaded=previous, changing=True, wanted=wanted))
        try:
            self._carry_out(wanted)
        except StillBusy:
            raise  # nothing else may be tried while the kernel is at it; the next call recovers by the record
        except RegattaError as err:
            raise self._rolled_back(err, previous, facts.boot) from err
        self._folder.write(OverlayRecord(boot=facts.boot, loaded=wanted))
        self._folder.keep_only((wanted, previous))
        logger.info("event=overlay_loaded overlay=%s before=%s", wanted, previous)

    def _rolled_back(self, err: RegattaError, previous: Loaded | None, boot: str | None) -> RegattaError:
        """Return the error to raise, after going back to `previous`."""
        family = next(family for family in (Retryable, Rejected, Misuse) if isinstance(err, family))
        what = "no overlay" if previous is None else str(previous)
        try:
            self._carry_out(previous)
        except RegattaError as second:
            logger.error("event=overlay_rollback_failed previous=%s error=%s", previous, second)
            return family(f"{err}; and going back to {what} failed: {second}")
        self._folder.write(OverlayRecord(boot=boot, loaded=previous))
        logger.warning("event=overlay_rolled_back previous=%s error=%s", previous, err)
        return family(f"{err}; {what} of ours is loaded now" if previous is None else f"{err}; {what} is loaded again")

    def _carry_out(self, wanted: Loaded | None) -> None:
        facts = self.facts()
        for step in steps_to(wanted, facts):
            self._take(step, f"{_MANAGERS}/{facts.manager}")

    def _take(self, step: Step, manager: str) -> None:
        if isinstance(step, RemoveTree):
            self._call(lambda: self._kernel.remove(_OURS), "remove our device-tree overlay")
        elif isinstance(step, WriteFlags):
            flags = f"{step.flags:x}"  # the kernel reads hexadecimal (kstrtol(buf, 16) in Xilinx's fpga-mgr.c)
            self._call(lambda: self._kernel.write(f"{manager}/flags", flags), f"set the FPGA's flags to {flags}")
        elif isinstance(step, Program):
            file = step.file
            self._program(lambda: self._kernel.write(f"{manager}/firmware", file), f"load {file}", manager)
        elif isinstance(step, ApplyTree):
            tree = step.file
            self._call(lambda: self._kernel.make(_OURS), f"make {_OURS}")
            self._program(lambda: self._kernel.write(f"{_OURS}/path", tree), f"apply {tree}", manager)
        elif isinstance(step, Await):
            self._await_operating(manager, tree=step.tree)

    def _call(self, call: Callable[[], None], what: str) -> None:
        try:
            bounded(call, self._limits.call_s, what)
        except OSError as err:
            raise explained(err, what) from err

    def _program(self, call: Callable[[], None], what: str, manager: str) -> None:
        """Do a call that programs the FPGA; when it fails, the manager's state says better why than the errno."""
        try:
            bounded(call, self._limits.call_s, what)
        except OSError as err:
            if err.errno not in FORBIDDEN:
                self._check(manager, waited_out=False, after=f"cannot {what}: {err.strerror}: ")
            raise explained(err, what) from err

    def _check(self, manager: str, *, waited_out: bool, after: str = "") -> bool:
        """Return whether the FPGA operates; raise when its state says that it will not."""
        state = self._kernel.read(f"{manager}/state")
        trouble = trouble_of(state, waited_out=waited_out)
        if trouble is not None:
            status = " ".join((self._kernel.read(f"{manager}/status") or "").split())
            told = f" ({status})" if status else ""
            raise trouble.family(f"{after}the FPGA is in state {state!r}{told}: {trouble.words}")
        return state == "operating"

    def _await_operating(self, manager: str, *, tree: bool) -> None:
        deadline = time.monotonic() + self._limits.operating_s
        while not self._check(manager, waited_out=time.monotonic() > deadline):
            time.sleep(self._limits.poll_s)
        status = self._kernel.read(f"{_OURS}/status") if tree else "applied"
        if status != "applied":  # older kernels of Xilinx tell it here alone: the write of `path` succeeds
            raise Rejected(
                f"the kernel did not apply the device-tree overlay (its status is {status or 'unknown'}): it does not "
                "fit this board's device tree or its region, see `dmesg`"
            )

    def _await_quiet(self) -> None:
        """Wait until the FPGA manager is done with what a process before this one began."""
        deadline = time.monotonic() + self._limits.operating_s
        while (doing := busy_with(self.facts().state)) is not None:
            if time.monotonic() > deadline:
                raise Retryable(f"the FPGA has been busy for {self._limits.operating_s:g} s: {doing}")
            time.sleep(self._limits.poll_s)
