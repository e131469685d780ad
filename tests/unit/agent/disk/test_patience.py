"""When a disk that refused is asked again."""

from __future__ import annotations

from regatta_agent.disk.patience import Patience
from regatta_protocol.errors import StorageFull

FREE, HOUR_S = 10**9, 3600.0


def waits(patience: Patience, now_s: float, free_bytes: int) -> float:
    """Return after how many seconds it may be asked, to a tenth; what does not come within two hours is two hours."""
    return next(
        (tenth / 10 for tenth in range(72_000) if patience.may_ask(now_s + tenth / 10, free_bytes)), 7200.0
    )  # fmt: skip


def test_a_full_disk_is_left_alone_for_an_hour_or_until_there_is_space() -> None:
    """Whatever the error says, a disk without space is full."""
    for error in (StorageFull("full"), OSError("unable to open database file")):
        patience = Patience(HOUR_S)
        assert patience.may_ask(0.0, 0)
        patience.refused(error, 10.0, 1000)

        assert patience.tried
        assert waits(patience, 10.0, 1000) == HOUR_S
        assert waits(patience, 10.0, 60_000) == HOUR_S
        assert waits(patience, 10.0, 100_000) == 0.0
        patience.obeyed()
        assert not patience.tried


def test_other_faults_are_waited_for_ever_longer() -> None:
    """From seconds to five minutes; once it obeyed, from the start."""
    patience = Patience(HOUR_S)
    waited = []
    for _ in range(9):
        patience.refused(OSError("broken"), 0.0, FREE)
        waited.append(waits(patience, 0.0, FREE))

    assert waited == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0]
    patience.obeyed()
    patience.refused(OSError("broken"), 0.0, FREE)
    assert waits(patience, 0.0, FREE) == 5.0
