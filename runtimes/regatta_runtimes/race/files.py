"""The files of a race as they lie on disk: who enters with them, their trials, and the key that they make.

Each file is read for its digest once. Not here: what a key depends on (key.py), and how a trial goes (trial.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from regatta_protocol.errors import Rejected
from regatta_protocol.ids import Digest, digest_of_file
from regatta_protocol.measurement import BoardFacts
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.race.enumerate import Entrant
from regatta_runtimes.race.key import KeyedVariant, race_key
from regatta_runtimes.race.spec import RaceSpec, RaceVariant
from regatta_runtimes.runtime import ModelFormat, format_of
from regatta_runtimes.worker.nursery import Nursery
from regatta_runtimes.worker.quarantine import Ledger, pair_of
from regatta_runtimes.worker.trial import Trial, TrialFiles, TrialLimits

__all__ = ["RaceFiles"]


class RaceFiles:
    """The files that a specification names."""

    def __init__(self, spec: RaceSpec) -> None:
        self._spec = spec
        self._digests: dict[Path, Digest] = {}

    def entrants(self) -> list[Entrant]:
        """Return the variants, with the formats of their files.

        Raises:
            Rejected: when a file cannot be read.
        """
        return [Entrant(one.name, one.requires, _format(Path(one.path)), one.precision) for one in self._spec.variants]

    def trials(self, candidates: Sequence[Candidate], nurseries: Mapping[str, Nursery]) -> list[Trial]:
        """Return a trial for each candidate.

        Raises:
            Rejected: when a model file cannot be read.
        """
        spec = self._spec
        paths = {variant.name: Path(variant.path) for variant in spec.variants}
        limits = TrialLimits(
            memory_bytes=spec.memory_bytes, open_s=max(3.0, spec.budget_s / 2), answer_s=max(3.0, spec.budget_s / 4)
        )
        golden = None if spec.golden is None else Path(spec.golden)
        evaluation = None if spec.evaluation is None else Path(spec.evaluation)
        ledger = Ledger(spec.quarantine)
        return [
            Trial(
                candidate,
                TrialFiles(paths[candidate.variant], golden, evaluation),
                limits,
                pair=pair_of(
                    candidate,
                    self._library_digest(candidate),
                    nurseries[candidate.runtime].runtime_version,
                    self._digest(paths[candidate.variant]),
                ),
                ledger=ledger,
            )
            for candidate in candidates
        ]

    def key(
        self,
        board: BoardFacts,
        candidates: Sequence[Candidate],
        threads: Sequence[int],
        working: Mapping[str, Nursery],
    ) -> Digest:
        """Return the key of this race.

        Args:
            board: that it is run on.
            candidates: that take part.
            threads: the counts that candidates are made of.
            working: the runtimes that work here.

        Raises:
            Rejected: when a file of the bundle cannot be read.
        """
        spec = self._spec
        taking_part = {candidate.variant for candidate in candidates}
        return race_key(
            [
                KeyedVariant(
                    variant.name, self._digest(Path(variant.path)), variant.requires, self._overlay_key(variant)
                )
                for variant in spec.variants
                if variant.name in taking_part
            ],
            golden=None if spec.golden is None else self._digest(Path(spec.golden)),
            evaluation=None if spec.evaluation is None else self._digest(Path(spec.evaluation)),
            board=board,
            libraries={
                f"{one.drive} {json.dumps(one.plugin.options, sort_keys=True)}": self._library_digest(one) or ""
                for one in candidates
                if one.plugin is not None
            },
            runtimes={name: nursery.runtime_version for name, nursery in working.items()},
            threads=threads,
        )

    def _overlay_key(self, variant: RaceVariant) -> tuple[str, ...]:
        """Return what the variant's figures depend on in the FPGA."""
        overlay = variant.overlay
        if overlay is None:
            return ()
        tree = () if overlay.device_tree is None else (self._digest(Path(overlay.device_tree)),)
        return (self._digest(Path(overlay.bitstream)), f"{overlay.flags:x}", *tree)

    def _library_digest(self, candidate: Candidate) -> Digest | None:
        """Return the digest of the library that the candidate loads; None when the runtime brings the delegate."""
        library = candidate.plugin.library if candidate.plugin is not None else None
        return None if library is None else self._digest(Path(library))

    def _digest(self, path: Path) -> Digest:
        if path not in self._digests:
            try:
                self._digests[path] = digest_of_file(path)
            except OSError as err:
                raise Rejected(f"{path} cannot be read: {err.strerror}") from err
        return self._digests[path]


def _format(path: Path) -> ModelFormat:
    try:
        return format_of(path)
    except OSError as err:
        raise Rejected(f"{path} cannot be read: {err.strerror}") from err
