"""A service that keeps failing: how long it waits before each start, by a clock that is moved by hand."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from regatta_agent.process.holding_back import forgive, hold_back


class Service:
    """Is started again 2 s after each end, as the unit says."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.waited_s = 0.0

    def start(self, runs_s: float = 0.0) -> float:
        """Return how long it held back; then it runs for so long, and fails."""
        self.waited_s = 0.0
        hold_back(lambda: self.now_s, self._wait)
        self.now_s += runs_s + 2.0
        return self.waited_s

    def _wait(self, seconds: float) -> None:
        self.waited_s += seconds
        self.now_s += seconds


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    return Service()


def test_pauses_grow_to_five_minutes_and_stay_there(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """The first starts are at once, so that a crash costs seconds; it is never given up."""
    with caplog.at_level(logging.WARNING):
        waits = [service.start(runs_s=5.0) for _ in range(20)]

    assert waits[:6] == [0.0, 0.0, 0.0, 2.0, 4.0, 8.0]
    assert waits[-5:] == [300.0] * 5
    assert waits == sorted(waits)
    assert len(caplog.messages) == 17


def test_who_ran_for_long_or_ended_as_asked_has_a_clean_record(service: Service, tmp_path: Path) -> None:
    """Also after a boot of the board, when the clock begins anew."""
    for _ in range(10):
        service.start()
    service.start(runs_s=1000.0)
    assert service.start() == 0.0
    for _ in range(10):
        service.start()
    forgive()
    assert service.start() == 0.0
    for _ in range(10):
        service.start()
    service.now_s = 3.0
    assert service.start() == 0.0


@pytest.mark.parametrize("content", ["", "many", "7", "7 x", "9" * 1000, "\0\0\0"])
def test_a_count_that_cannot_be_read_is_none(service: Service, tmp_path: Path, content: str) -> None:
    (tmp_path / "starts").write_text(content)

    assert service.start() == 0.0


def test_in_a_terminal_nobody_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nor where the run folder takes nothing."""
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    service = Service()
    assert [service.start() for _ in range(10)] == [0.0] * 10
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "none"))
    assert [service.start() for _ in range(10)] == [0.0] * 10
