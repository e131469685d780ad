"""The race of one version as a job: a child process that is given a spec file and leaves a report.

Before it measures, the child says the key of its race (regatta_runtimes.race.key). A result with that key is looked for
in this device's own, then asked of the fleet; it is put into a file, and the child goes on when its standard input
ends. The fleet has a few seconds, and none when it is offline: without an answer the child races in full.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regatta_agent.disk.priors import MAX_PRIOR_BYTES, Priors
from regatta_agent.disk.quarantine_file import QuarantineFile
from regatta_agent.disk.store import MAX_RACE_BYTES, Store
from regatta_agent.events import ChildEnded, ChildLine, Event
from regatta_agent.work.children import Child, Launcher
from regatta_agent.work.jobs import Failed, Outcome, Raced, response_in
from regatta_agent.work.overlays import overlay_files
from regatta_protocol import topics
from regatta_protocol.bus import Bus
from regatta_protocol.codec import decode, encode
from regatta_protocol.durable import read_bounded, shortage_of
from regatta_protocol.errors import Exhausted, RegattaError, Retryable, StorageFull
from regatta_protocol.ids import DIGEST_PATTERN, DeviceId, Digest, ModelRef
from regatta_protocol.manifest import Manifest, Variant
from regatta_protocol.measurement import PriorRace, RaceReport
from regatta_protocol.messages import Request
from regatta_protocol.plain import to_document
from regatta_protocol.policy import Policy
from regatta_runtimes.power.settings import PowerSettings

__all__ = ["FleetResults", "Race", "RaceSettings", "race_spec"]

logger = logging.getLogger(__name__)

_MARGIN_S = 120.0  # over the budget: candidates that hang are killed by the race itself first
_ANSWER_S = 5.0  # patience with the fleet: a satellite link's round trip twice, and less than most races take
_LEAST_FREE_BYTES = 256 * 1024  # of the folder for spec and report; a report has some 50 KB
_KEY_LINE = re.compile(rf"key ({DIGEST_PATTERN[1:-1]})".encode())


class RaceSettings:
    """What every race of this agent has in common."""

    def __init__(
        self,
        sysroot: Path,
        budget_s: float,
        threads: tuple[int, ...] | None,
        quarantine: QuarantineFile,
        priors: Priors,
        delegate_files: tuple[Path, ...] = (),
        power: PowerSettings = PowerSettings(),  # noqa: B008 - frozen
    ) -> None:
        self.sysroot = sysroot
        self.delegate_files = delegate_files
        self.quarantine = quarantine
        self.priors = priors
        self.budget_s = budget_s
        self.threads = threads
        self.power = power


class FleetResults:
    """One question to the fleet: has any device a result with this key?"""

    def __init__(self, bus: Bus, device: DeviceId, request_id: str) -> None:
        self.device = device
        self._bus = bus
        self._id = request_id
        self._deadline_s: float | None = None

    def ask(self, key: Digest, now_s: float) -> bool:
        """Ask; return whether an answer may come."""
        request = Request(id=self._id, method="race", params={"key": key})
        try:
            self._bus.publish(topics.up(self.device, topics.Up.REQUEST), encode(request))
        except RegattaError as err:
            logger.debug("event=race_result_not_asked error=%s", err)
            return False
        self._deadline_s = now_s + _ANSWER_S
        return True

    def hear(self, event: Event) -> tuple[bool, PriorRace | None]:
        """Return whether the event is the answer, and the result in it when the fleet has one."""
        answer = None if self._deadline_s is None else response_in(event, self.device, self._id)
        if answer is None:
            return False, None
        self._deadline_s = None
        if answer.race is None:
            logger.info("event=race_result_unknown reason=%s", (answer.error or "none given")[:300])
        return True, answer.race

    def overdue(self, now_s: float) -> bool:
        """Return, once, that no answer came in time."""
        late = self._deadline_s is not None and now_s > self._deadline_s
        if late:
            self._deadline_s = None
        return late


class Race:
    """One race.

    Args of the constructor:
        assigned: the policy instead of the bundle's, when the fleet set one.
        again: the version serves already, and its last race may answer for a changed policy (rejudge.py).
        fpga_reserved: why it must leave its FPGA overlay out, or None.
    """

    def __init__(
        self, name: str, ref: ModelRef, store: Store, launcher: Launcher, folder: Path, settings: RaceSettings,
        results: FleetResults, wall_s: float, *, assigned: Policy | None = None, again: bool = False,
        fpga_reserved: str | None = None,
    ) -> None:  # fmt: skip
        self._name = name
        self._ref = ref
        self._store = store
        self._launcher = launcher
        self._spec_path = folder / f"{name}.spec.json"
        self._report_path = folder / f"{name}.report.json"
        self._prior_path = folder / f"{name}.prior.json"
        self._settings = settings
        self._assigned = assigned
        self._again = again
        self._fpga_reserved = fpga_reserved
        self._results = results
        self._wall_s = wall_s  # when it begins
        self._bundled = Policy()
        self._prior: PriorRace | None = None  # what it was told
        self._key: Digest | None = None
        self._child: Child | None = None
        self._deadline_s = 0.0

    def begin(self, now_s: float) -> Outcome | None:
        manifest = self._store.manifest(self._ref)
        if manifest is None:
            return Failed(Retryable(f"the manifest of {self._ref} is gone from the disk"))
        self._bundled = manifest.policy
        self._deadline_s = now_s + self._settings.budget_s + _MARGIN_S
        argv = [sys.executable, "-m", "regatta_runtimes.race.run", str(self._spec_path)]
        try:
            self._clear()
            spec = race_spec(manifest, self._store, self._settings, assigned=self._assigned, again=self._again)
            spec = {**spec, "prior_path": str(self._prior_path), "fpga_reserved": self._fpga_reserved}
            self._spec_path.write_text(json.dumps(spec))
            self._child = self._launcher.launch(self._name, [*argv, "--output", str(self._report_path)], None)
        except OSError as err:
            return Failed(shortage_of(err, "the race") or Retryable(f"the race cannot be started: {err}"))
        logger.info("event=race_started version=%s", self._ref)
        return None

    def handle(self, event: Event, now_s: float) -> Outcome | None:
        if isinstance(event, ChildLine) and event.child == self._name:
            logger.debug("event=race_progress version=%s line=%s", self._ref, event.line[:300].decode(errors="replace"))
            self._take_key(event.line, now_s)
        answered, prior = self._results.hear(event)
        if answered:
            self._tell(prior)
        if not isinstance(event, ChildEnded) or event.child != self._name:
            return None
        try:
            if event.status != 0:
                # Want of memory counts as an attempt: it may be the version that needs more than the board has.
                kind = Exhausted if event.lack == "descriptors" else Retryable
                raise kind(f"the race {event.describe()}")
            report = decode(RaceReport, read_bounded(self._report_path, MAX_RACE_BYTES), MAX_RACE_BYTES)
        except OSError as err:
            return Failed(self._full() or Retryable(f"the race left no report: {err}"))
        except RegattaError as err:
            return Failed(self._full() or Retryable(str(err)))
        finally:
            self._clear()
        self._settings.quarantine.save(self._settings.quarantine.load().after(report.candidates))
        self._keep(report)
        return Raced(report, self._bundled, self._assigned)

    def tick(self, now_s: float) -> Outcome | None:
        if self._results.overdue(now_s):
            logger.info("event=race_result_unknown reason=no answer within %g s", _ANSWER_S)
            self._tell(None)
        if now_s <= self._deadline_s:
            return None
        self.cancel()
        return Failed(Retryable(f"the race took over {self._settings.budget_s + _MARGIN_S:g} s and was ended"))

    def cancel(self) -> None:
        if self._child is not None:
            self._child.kill()
        self._clear()

    def _take_key(self, line: bytes, now_s: float) -> None:
        """Look for a result when the child says its key, which it does once."""
        match = _KEY_LINE.fullmatch(line)
        if match is None or self._key is not None:
            return
        self._key = Digest(match[1].decode())
        own = self._settings.priors.find(self._key)
        if own is not None or not self._results.ask(self._key, now_s):
            self._tell(own)

    def _tell(self, prior: PriorRace | None) -> None:
        """Let the child go on, with what was found."""
        if prior is not None:
            try:
                self._prior_path.write_bytes(encode(prior, MAX_PRIOR_BYTES))
                self._prior = prior
                logger.info("event=race_result_found version=%s device=%s", self._ref, prior.device)
            except (RegattaError, OSError) as err:
                logger.warning("event=race_result_unusable version=%s error=%s", self._ref, err)
                _remove(self._prior_path)  # half of it may be there
        if self._child is not None:
            self._child.finish()

    def _keep(self, report: RaceReport) -> None:
        """Remember the full race that the placement rests on: this one, or that which it confirmed."""
        if report.placement is None:
            return
        if report.basis == "full":
            prior = PriorRace(device=self._results.device, at=self._wall_s, report=report)
            self._settings.priors.keep(prior)
        elif self._prior is not None:
            self._settings.priors.keep(self._prior)

    def _full(self) -> StorageFull | None:
        """Return that the folder for its report is full, where it is: then that is why a race failed."""
        folder = self._report_path.parent
        facts = os.statvfs(folder)
        free_bytes = facts.f_bavail * facts.f_frsize
        if free_bytes >= _LEAST_FREE_BYTES:
            return None
        return StorageFull(f"the race failed with {free_bytes} bytes free in {folder}: free some and it goes on")

    def _clear(self) -> None:
        for path in (self._spec_path, self._report_path, self._prior_path):
            _remove(path)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as err:  # its name does not come again, and the folder is cleared with the next boot
        logger.warning("event=race_file_kept path=%s error=%s", path, err)


def race_spec(
    manifest: Manifest, store: Store, settings: RaceSettings, *, assigned: Policy | None = None, again: bool = False
) -> Mapping[str, Any]:
    """Return regatta_runtimes.race.RaceSpec as JSON values; that module is not imported into the control process."""
    return {
        "model": manifest.name,
        "version": manifest.version,
        "variants": [
            {
                "name": variant.name,
                "path": str(store.blob_path(variant.file.digest)),
                "requires": list(variant.requires),
                "overlay": _overlay(variant, store),
                "precision": variant.precision,
                "accuracy": to_document(variant.accuracy) if variant.accuracy is not None else None,
            }
            for variant in manifest.variants
        ],
        "golden": str(store.blob_path(manifest.golden.digest)),
        "evaluation": str(store.blob_path(manifest.evaluation.digest)) if manifest.evaluation is not None else None,
        "policy": (assigned or manifest.policy).model_dump(mode="json"),
        "earlier": str(store.race_path(manifest.ref)) if again else None,
        "sysroot": str(settings.sysroot),
        "threads": list(settings.threads) if settings.threads is not None else None,
        "budget_s": settings.budget_s,
        "delegate_files": [str(path.absolute()) for path in settings.delegate_files],
        "power": to_document(settings.power),
        "quarantine": settings.quarantine.load().model_dump(mode="json"),
    }


def _overlay(variant: Variant, store: Store) -> Mapping[str, Any] | None:
    files = overlay_files(variant, store)
    return None if files is None else to_document(files)
