"""A database that an older release left is brought up to date with what it holds."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text

import regatta_fleet.database.migrations as migrations
from regatta_fleet.database.certificates import Issued, certificates_of
from regatta_fleet.database.devices import list_devices
from regatta_fleet.database.engine import open_database, sqlite_url
from regatta_protocol.ids import DeviceId


def test_certificates_of_the_time_before_renewal_are_kept(tmp_path: Path) -> None:
    """Those of devices in the fleet, good for the year that was given then; a revoked device has none."""
    url = sqlite_url(tmp_path / "fleet.sqlite")
    engine = create_engine(url)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__path__[0])))
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        for device, serial, revoked_at in (("pi-1", 2**150, "NULL"), ("pi-2", 7, "60.0")):
            connection.execute(
                text(
                    "INSERT INTO devices (id, group_name, enrolled_at, certificate_serial, revoked_at, up, board, "
                    "desired_generation, desired_at, bytes_received, dropped_items) VALUES "
                    f"('{device}', 'lab', 50.0, '{serial}', {revoked_at}, 0, '{{}}', 3, 50.0, 9, 0)"
                )
            )
    engine.dispose()

    database = open_database(url)
    with database.read() as tx:
        rows = list_devices(tx)
        kept = {row.id: certificates_of(tx, row.id) for row in rows}
    database.close()

    assert [(row.id, row.desired_generation, row.revoked) for row in rows] == [("pi-1", 3, False), ("pi-2", 3, True)]
    assert kept == {DeviceId("pi-1"): {2**150: Issued(2**150, 50.0 + 365 * 86_400)}, DeviceId("pi-2"): {}}
