"""The race of one version as a job: a child process that is given a spec file and leaves a report."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regatta_agent.children import Child, Launcher
from regatta_agent.events import ChildEnded, ChildLine, Event
from regatta_agent.jobs import Failed, Outcome, Raced
from regatta_agent.overlays import overlay_files
from regatta_agent.quarantine_file import QuarantineFile
from regatta_agent.store import MAX_RACE_BYTES, Store
from regatta_protocol.codec import decode
from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import RegattaError, Retryable
from regatta_protocol.ids import ModelRef
from regatta_protocol.manifest import Manifest, Variant
from regatta_protocol.measurement import RaceReport

__all__ = ["Race", "RaceSettings", "race_spec"]

logger = logging.getLogger(__name__)

_MARGIN_S = 120.0  # over the budget: candidates that hang are killed by the race itself first


class RaceSettings:
    """What every race of this agent has in common."""

    def __init__(
        self, sysroot: Path, budget_s: float, threads: tuple[int, ...] | None, quarantine: QuarantineFile
    ) -> None:
        self.sysroot = sysroot
        self.quarantine = quarantine
        self.budget_s = budget_s
        self.threads = threads


class Race:
    """One race."""

    def __init__(
        self, name: str, ref: ModelRef, store: Store, launcher: Launcher, folder: Path, settings: RaceSettings,
        *, fpga_reserved: str | None = None,
    ) -> None:  # fmt: skip
        self._name = name
        self._ref = ref
        self._store = store
        self._launcher = launcher
        self._spec_path = folder / f"{name}.spec.json"
        self._report_path = folder / f"{name}.report.json"
        self._settings = settings
        self._fpga_reserved = fpga_reserved
        self._child: Child | None = None
        self._deadline_s = 0.0

    def begin(self, now_s: float) -> Outcome | None:
        manifest = self._store.manifest(self._ref)
        if manifest is None:
            return Failed(Retryable(f"the manifest of {self._ref} is gone from the disk"))
        self._deadline_s = now_s + self._settings.budget_s + _MARGIN_S
        argv = [sys.executable, "-m", "regatta_runtimes.race", str(self._spec_path)]
        try:
            self._report_path.unlink(missing_ok=True)
            spec = {**race_spec(manifest, self._store, self._settings), "fpga_reserved": self._fpga_reserved}
            self._spec_path.write_text(json.dumps(spec))
            self._child = self._launcher.launch(self._name, [*argv, "--output", str(self._report_path)], None)
        except OSError as err:
            return Failed(Retryable(f"the race cannot be started: {err}"))
        logger.info("event=race_started version=%s", self._ref)
        return None

    def handle(self, event: Event, now_s: float) -> Outcome | None:
        if isinstance(event, ChildLine) and event.child == self._name:
            logger.debug("event=race_progress version=%s line=%s", self._ref, event.line[:300].decode(errors="replace"))
        if not isinstance(event, ChildEnded) or event.child != self._name:
            return None
        try:
            if event.status != 0:
                raise Retryable(f"the race {event.describe()}")
            report = decode(RaceReport, read_bounded(self._report_path, MAX_RACE_BYTES), MAX_RACE_BYTES)
        except OSError as err:
            return Failed(Retryable(f"the race left no report: {err}"))
        except RegattaError as err:
            return Failed(Retryable(str(err)))
        finally:
            self._clear()
        self._settings.quarantine.save(self._settings.quarantine.load().after(report.candidates))
        return Raced(report)

    def tick(self, now_s: float) -> Outcome | None:
        if now_s <= self._deadline_s:
            return None
        self.cancel()
        return Failed(Retryable(f"the race took over {self._settings.budget_s + _MARGIN_S:g} s and was ended"))

    def cancel(self) -> None:
        if self._child is not None:
            self._child.kill()
        self._clear()

    def _clear(self) -> None:
        self._spec_path.unlink(missing_ok=True)
        self._report_path.unlink(missing_ok=True)


def race_spec(manifest: Manifest, store: Store, settings: RaceSettings) -> Mapping[str, Any]:
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
                "accuracy": variant.accuracy.model_dump(mode="json") if variant.accuracy is not None else None,
            }
            for variant in manifest.variants
        ],
        "golden": str(store.blob_path(manifest.golden.digest)),
        "evaluation": str(store.blob_path(manifest.evaluation.digest)) if manifest.evaluation is not None else None,
        "policy": manifest.policy.model_dump(mode="json"),
        "sysroot": str(settings.sysroot),
        "threads": list(settings.threads) if settings.threads is not None else None,
        "budget_s": settings.budget_s,
        "quarantine": settings.quarantine.load().model_dump(mode="json"),
    }


def _overlay(variant: Variant, store: Store) -> Mapping[str, Any] | None:
    files = overlay_files(variant, store)
    return None if files is None else files.model_dump(mode="json")
