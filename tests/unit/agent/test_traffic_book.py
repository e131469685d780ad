"""What the network was used for is kept over restarts, cheaply, and shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regatta_agent.cli import main
from regatta_agent.disk.traffic import TrafficBook, TrafficFile, read_traffic
from regatta_protocol.traffic import Amount, Cause


def opened(folder: Path, wall_s: float = 1000.0) -> TrafficBook:
    for name in ("state", "run"):
        (folder / name).mkdir(exist_ok=True)
    return TrafficBook(folder / "state", folder / "run", wall_s)


def test_sums_go_on_after_a_restart(tmp_path: Path) -> None:
    """Since enrolment, not since the last start; the running agent's figure is the one that is read."""
    book = opened(tmp_path)
    book.ledger.add(Cause.TELEMETRY, Amount(100, 10))
    book.close()
    again = opened(tmp_path, 5000.0)
    again.ledger.add(Cause.TELEMETRY, Amount(1, 2))
    again.tick(0.0)

    assert read_traffic(tmp_path / "state", tmp_path / "run") == TrafficFile(
        since=1000.0, causes={"telemetry": (101, 12)}
    )


def test_the_card_is_written_once_an_hour_at_most(tmp_path: Path) -> None:
    """A message a minute for three hours is three writes to the state folder."""
    book = opened(tmp_path)
    kept = tmp_path / "state" / "traffic.json"
    seen = set()
    for minute in range(3 * 60 + 1):
        book.ledger.add(Cause.PRESENCE, Amount(1, 1))
        book.tick(minute * 60.0)
        if kept.exists():
            seen.add(kept.stat().st_mtime_ns)

    assert len(seen) == 3
    assert read_traffic(tmp_path / "state", tmp_path / "none") == TrafficFile(
        since=1000.0, causes={"presence": (181, 181)}
    )


@pytest.mark.parametrize("garbage", [b"", b"{", b'{"since":1,"causes":{"telemetry":[1]}}', b"x" * 20_000])
def test_a_damaged_file_is_counted_anew(tmp_path: Path, garbage: bytes) -> None:
    """A figure never stops the agent."""
    book = opened(tmp_path)
    (tmp_path / "state" / "traffic.json").write_bytes(garbage)
    again = opened(tmp_path, 7.0)
    again.ledger.add(Cause.OTHER, Amount(1, 0))
    again.close()

    assert book.ledger.totals() == {}
    assert read_traffic(tmp_path / "state", tmp_path / "run") == TrafficFile(since=7.0, causes={"other": (1, 0)})


def test_what_a_newer_agent_counted_is_not_lost(tmp_path: Path) -> None:
    """After a downgrade an unknown cause is in the sum."""
    book = opened(tmp_path)
    (tmp_path / "state" / "traffic.json").write_text('{"since": 1.0, "causes": {"quic": [3, 4], "other": [1, 1]}}')
    again = opened(tmp_path)

    assert book.ledger.totals() == {}
    assert again.ledger.totals() == {Cause.OTHER: Amount(4, 5)}


def test_status_shows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The most expensive cause first, and the sum; as JSON too."""
    book = opened(tmp_path)
    folders = ["--state-dir", str(tmp_path / "state"), "--run-dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        main(["status", "--bytes", *folders])
    nothing = capsys.readouterr().out
    book.ledger.add(Cause.PRESENCE, Amount(160, 130))
    book.ledger.add(Cause.TRANSFER, Amount(1000, 2_000_000))
    book.close()
    with pytest.raises(SystemExit):
        main(["status", "--bytes", *folders])
    text = capsys.readouterr().out.splitlines()
    with pytest.raises(SystemExit):
        main(["status", "--bytes", "--json", *folders])
    document = json.loads(capsys.readouterr().out)

    assert "no traffic was counted yet" in nothing
    assert [line.split()[:4] for line in text[1:]] == [
        ["transfer", "1,000", "2,000,000", "2,001,000"],
        ["presence", "160", "130", "290"],
        ["all", "1,160", "2,000,130", "2,001,290"],
    ]
    assert document["causes"]["transfer"] == {"sent": 1000, "received": 2_000_000}
    assert (document["sent"], document["received"]) == (1160, 2_000_130)
