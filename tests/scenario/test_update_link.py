"""An update over a bad link: what is lost, doubled, cut off or tampered with on its way, and a silent fleet."""

from __future__ import annotations

import itertools
from pathlib import Path
from random import Random

import pytest

from device_rig import DEVICE, Rig, installed
from regatta_agent.core import transfer
from regatta_agent.disk.store import Store
from regatta_protocol.testing import Faults

_LARGE_BYTES = 6_000_000  # a kill costs what was on its way: 128 KiB below


@pytest.mark.parametrize("seed_faults", [Faults(drop=0.3, truncate=0.1, duplicate=0.3, reorder=0.3)])
def test_lost_damaged_doubled_and_reordered_messages_only_delay(tmp_path: Path, seed_faults: Faults) -> None:
    """Chunks are asked for again; nothing that is doubled or late does harm."""
    rig = Rig(tmp_path, faults=seed_faults).start()
    rig.fleet.push(1, 600_000)
    rig.fleet.assign(1)

    assert rig.run(until=rig.committed(1), seconds=300)


def test_a_cut_connection_resumes_the_download_where_it_was(tmp_path: Path) -> None:
    """At most 5 % more bytes than the file are sent, and being offline is no failed attempt."""
    rig = Rig(tmp_path).start()
    manifest = rig.fleet.push(1, 1_500_000)
    big = manifest.variants[0].file.digest
    chunks = itertools.count()

    def cut_sometimes(get: object, data: bytes) -> bytes:
        if next(chunks) % 40 == 39:
            rig.broker.cut(DEVICE)
        return data

    rig.fleet.tamper = cut_sometimes
    rig.fleet.assign(1)

    assert rig.run(until=rig.committed(1), seconds=300), rig.install(1)
    assert rig.install(1).attempt == 0
    assert rig.fleet.sent_bytes <= 1.05 * len(rig.fleet.blobs[big]), "what was on its way is fetched twice"


class Killed(Exception):
    """The agent was killed at this moment."""


@pytest.mark.parametrize("seed", range(3))
def test_cuts_and_kills_cost_few_bytes_more_than_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """At most 5 % more, with a connection that is cut every megabyte and an agent that is killed twice at random times.

    What was on its way to a process that is killed is lost: here 128 KiB, as on a link of 10 Mbit/s and 100 ms.
    """
    monkeypatch.setattr(transfer, "MAX_WINDOW", 8)
    rig, chunks = Rig(tmp_path).start(), itertools.count()
    big = rig.fleet.push(1, _LARGE_BYTES).variants[0].file
    killed_at = Random(seed).sample(range(20, _LARGE_BYTES // 16_384 - 20), 2)

    def disturb(_get: object, data: bytes) -> bytes:
        number = next(chunks)
        if number in killed_at:
            raise Killed
        if number % 64 == 63:
            rig.broker.cut(DEVICE)
        return data

    rig.fleet.tamper = disturb
    rig.fleet.assign(1)
    for _ in killed_at:
        with pytest.raises(Killed):
            rig.run(seconds=300)
        rig.restart()

    assert rig.run(until=rig.committed(1), seconds=300), rig.install(1)
    assert rig.fleet.sent_bytes <= 1.05 * big.size_bytes


def test_a_tampered_file_is_fetched_once_more_and_then_fails(tmp_path: Path) -> None:
    """The digest is the judge; the running version is untouched."""
    rig = installed(tmp_path)
    manifest = rig.fleet.push(2)
    wrong = manifest.variants[0].file.digest
    rig.fleet.tamper = lambda get, data: bytes(len(data)) if get.digest == wrong else data
    rig.fleet.assign(2, "r2")

    assert rig.run(until=lambda: rig.state(2) == "failed")
    assert "digest" in (rig.install(2).reason or "")
    assert rig.install(2).attempt == 2
    assert rig.serving() == 1
    assert not Store(rig.config.state_dir).blob_path(wrong).exists()


def test_a_file_tampered_with_once_is_made_good(tmp_path: Path) -> None:
    """One wrong download is fetched again."""
    rig = Rig(tmp_path).start()
    manifest = rig.fleet.push(1)
    wrong, times = manifest.variants[0].file.digest, itertools.count()
    rig.fleet.tamper = lambda get, data: bytes(len(data)) if get.digest == wrong and next(times) < 3 else data
    rig.fleet.assign(1)

    assert rig.run(until=rig.committed(1))
    assert rig.install(1).bad_digests == (wrong,)


def test_a_silent_fleet_costs_no_attempt(tmp_path: Path) -> None:
    """A broker without its server is as good as none: it waits with a reason, and goes on when answered."""
    rig = Rig(tmp_path, max_attempts=3).start()
    rig.fleet.push(1)
    rig.fleet.assign(1)
    rig.fleet.mute = True
    rig.run(1200, step_s=5)
    assert rig.state(1) == "assigned"
    assert rig.install(1).attempt == 0
    rig.fleet.mute = False

    assert rig.run(until=rig.committed(1), seconds=700)
