"""A whole device over a fleet in memory: updates, ways back, and everything that goes wrong on the way."""

from __future__ import annotations

from pathlib import Path

from device_rig import Rig


def test_a_version_is_installed_and_served(tmp_path: Path) -> None:
    """An assignment ends in a committed version behind the model's socket, and the fleet hears of it."""
    rig = Rig(tmp_path).start()
    rig.fleet.push(1)
    rig.fleet.assign(1)

    assert rig.run(until=rig.committed(1)), rig.install(1)
    rig.run(1)

    last = rig.fleet.reports[-1]
    assert [(m.version, m.state, m.serving) for m in last.models] == [(1, "committed", True)]
    assert last.generation == 1
