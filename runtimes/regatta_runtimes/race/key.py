"""What a race's figures depend on, as one digest: results with equal keys may stand for each other.

Pure. In the key: the files that run here (variants, golden, evaluation), the kind of board, its drivers and delegate
libraries, the versions of the runtimes that work here, the thread counts tried, and how races measure. Not in it:
temperature and load, which change from minute to minute; the model's name and version, for equal files are equal work;
and the policy, for judging stored figures anew is cheap (claim.py), and measuring them is not.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from regatta_protocol.ids import Digest, digest_of_bytes
from regatta_protocol.measurement import BoardFacts

__all__ = ["MEASURING", "KeyedVariant", "race_key"]

MEASURING = 1  # grows when races measure differently, so that figures of before are not believed any more


@dataclass(frozen=True)
class KeyedVariant:
    """A variant that has a candidate here. Its name counts: candidates are named by it."""

    name: str
    digest: Digest
    requires: tuple[str, ...] = ()
    overlay: tuple[str, ...] = ()  # what the FPGA is loaded with for it: digests and flags


def race_key(
    variants: Collection[KeyedVariant],
    golden: Digest | None,
    evaluation: Digest | None,
    *,
    board: BoardFacts,
    libraries: Mapping[str, str],
    runtimes: Mapping[str, str],
    threads: Sequence[int],
) -> Digest:
    """Return the key.

    Args:
        variants: those that can run here, in any order.
        libraries: delegate with its options -> digest of its library or "", of the accelerators' that take part.
        runtimes: name -> version of those that work here.
        threads: the counts that candidates are made of.
    """
    facts = {
        "measuring": MEASURING,
        "variants": sorted(
            [variant.name, variant.digest, sorted(variant.requires), *variant.overlay] for variant in variants
        ),
        "golden": golden,
        "evaluation": evaluation,
        "board": board.fingerprint_text(),
        "drivers": board.drivers,
        "libraries": dict(libraries),
        "runtimes": dict(runtimes),
        "threads": sorted(threads),
    }
    return digest_of_bytes(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode())
