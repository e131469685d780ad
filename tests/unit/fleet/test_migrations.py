"""A database that an older release left is brought up to date with what it holds."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

import regatta_fleet.database.migrations as migrations
from regatta_fleet.database.certificates import Issued, certificates_of
from regatta_fleet.database.devices import list_devices
from regatta_fleet.database.engine import open_database, sqlite_url
from regatta_fleet.database.telemetry import serving_summaries
from regatta_protocol.ids import DeviceId


def _left_by(url: str, revision: str, *statements: str) -> None:
    """Leave a database as the release with that revision did."""
    engine = create_engine(url)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__path__[0])))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def test_what_was_served_before_stages_were_told_is_kept(tmp_path: Path) -> None:
    """Its stages are unknown until the device's next window."""
    url = sqlite_url(tmp_path / "fleet.sqlite")
    served = (
        "INSERT INTO served (device, model, version, placement, since, until, requests, errors, latency_counts, "
        "feedback_correct, feedback_total) VALUES ('pi-1', 'digits', 1, 'p', 1, 2, 9, 1, '{\"300\":8}', 0, 0)"
    )
    _left_by(url, "0008", served)

    database = open_database(url)
    with database.read() as tx:
        (summary,) = serving_summaries(tx).values()
    database.close()

    assert (summary.requests, summary.errors, summary.stages) == (9, 1, {})
    assert summary.p50_us is not None


def test_certificates_of_the_time_before_renewal_are_kept(tmp_path: Path) -> None:
    """Those of devices in the fleet, good for the year that was given then; a revoked device has none."""
    url = sqlite_url(tmp_path / "fleet.sqlite")
    devices = (
        "INSERT INTO devices (id, group_name, enrolled_at, certificate_serial, revoked_at, up, board, "
        "desired_generation, desired_at, bytes_received, dropped_items) VALUES "
        f"('{device}', 'lab', 50.0, '{serial}', {revoked_at}, 0, '{{}}', 3, 50.0, 9, 0)"
        for device, serial, revoked_at in (("pi-1", 2**150, "NULL"), ("pi-2", 7, "60.0"))
    )
    _left_by(url, "0003", *devices)

    database = open_database(url)
    with database.read() as tx:
        rows = list_devices(tx)
        kept = {row.id: certificates_of(tx, row.id) for row in rows}
    database.close()

    assert [(row.id, row.desired_generation, row.revoked) for row in rows] == [("pi-1", 3, False), ("pi-2", 3, True)]
    assert kept == {DeviceId("pi-1"): {2**150: Issued(2**150, 50.0 + 365 * 86_400)}, DeviceId("pi-2"): {}}
