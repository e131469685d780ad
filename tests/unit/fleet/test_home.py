"""A fleet's home: made once, kept over restarts, held by one server; and the settings that lead to it."""

from __future__ import annotations

import socket
import stat
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from regatta_fleet.home import Home, listen, read_server_info, server_info, wait_until_free
from regatta_fleet.settings import Settings, default_home
from regatta_protocol.errors import Misuse


def test_a_fleet_keeps_its_id_token_and_ports(tmp_path: Path) -> None:
    """Devices know the ports; only an option changes them."""
    settings = Settings(home=tmp_path / "deep" / "home")
    home = Home(settings.home)
    with home.locked():
        first = home.load(settings)
        again = home.load(settings)
        moved = home.load(settings.model_copy(update={"device_port": 12_345, "advertise": "fleet.example"}))

    assert first == again
    assert len({first.operator_port, first.device_port, first.broker_port}) == 3
    assert all(20_000 <= port < 32_000 for port in (first.operator_port, first.device_port, first.broker_port))
    assert moved == first.model_copy(update={"device_port": 12_345, "advertise": "fleet.example"})
    assert stat.S_IMODE(home.fleet_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700


def test_a_damaged_or_lost_fleet_file_is_no_new_fleet(tmp_path: Path) -> None:
    """A new id and new ports would cut every device off."""
    home = Home(tmp_path)
    home.fleet_file.write_text("{")
    with pytest.raises(Misuse, match="backup"):
        home.load(Settings(home=tmp_path))
    home.fleet_file.unlink()
    home.database.write_bytes(b"")
    with pytest.raises(Misuse, match="backup"):
        home.load(Settings(home=tmp_path))


def test_one_server_a_home(tmp_path: Path) -> None:
    """The second one is refused until the first ends."""
    with Home(tmp_path).locked(), pytest.raises(Misuse, match="runs already"), Home(tmp_path).locked():
        pass
    with Home(tmp_path).locked():
        pass


def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    """A file is in its place."""
    (tmp_path / "file").write_text("")
    with pytest.raises(Misuse, match="--home"), Home(tmp_path / "file" / "home").locked():
        pass


def test_server_json_tells_where_the_server_is(tmp_path: Path) -> None:
    """Readable for its owner only; what a killed server left counts for nothing."""
    home = Home(tmp_path)
    fleet = home.load(Settings(home=tmp_path))
    info = server_info(fleet, "127.0.0.1", fleet.broker_port, "0.1.0")
    assert read_server_info(tmp_path) is None
    home.announce(info)

    assert read_server_info(tmp_path) == info
    assert stat.S_IMODE(home.server_file.stat().st_mode) == 0o600
    assert fleet.token not in repr(info)
    home.announce(info.model_copy(update={"pid": 2**22 + 1}))  # above Linux's greatest
    assert read_server_info(tmp_path) is None
    home.server_file.write_text("{")
    with pytest.raises(Misuse, match="cannot be read"):
        read_server_info(tmp_path)
    home.withdraw()
    home.withdraw()
    assert read_server_info(tmp_path) is None


def test_devices_must_have_an_address(tmp_path: Path) -> None:
    """Listening everywhere is no address to connect to."""
    with pytest.raises(Misuse, match="--advertise"):
        Home(tmp_path).load(Settings(home=tmp_path, host="0.0.0.0"))
    fleet = Home(tmp_path).load(Settings(home=tmp_path, host="0.0.0.0", advertise="fleet.example"))
    assert server_info(fleet, "fleet.example", 1, "0").device_url == f"https://fleet.example:{fleet.device_port}"
    six = fleet.model_copy(update={"advertise": "::1"})
    assert server_info(six, "::1", 1, "0").device_url == f"https://[::1]:{fleet.device_port}"


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """What the listener accepts has Nagle's algorithm turned off by asyncio, which looks at the protocol for that."""
    with listen("127.0.0.1", 0, "device API") as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    """With what to do about it."""
    with listen("127.0.0.1", 0, "device API") as taken, pytest.raises(Misuse, match="is taken by another program"):
        listen("127.0.0.1", taken.getsockname()[1], "device API")
    with pytest.raises(Misuse, match="cannot listen"):
        listen("192.0.2.1", 0, "device API")  # TEST-NET-1 is no address of this machine


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": "not an address"},
        {"advertise": "under_score"},
        {"advertise": "0.0.0.0"},
        {"broker": "mqtt://plain:1883"},
        {"broker": "nonsense"},
        {"device_port": 0},
        {"unknown_key": 1},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    """Before anything starts, naming the key."""
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Settings.model_validate(wrong)


def test_settings() -> None:
    """The default of MQTT over TLS is IANA's port; the home comes from the environment."""
    assert Settings(broker="mqtts://broker.example").external_broker == ("broker.example", 8883)
    assert Settings(broker="mqtts://broker.example:99").external_broker == ("broker.example", 99)
    assert Settings().external_broker is None


def test_the_default_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """$REGATTA_HOME, else the user's folder for data."""
    monkeypatch.setenv("REGATTA_HOME", "/srv/fleet")
    assert default_home() == Path("/srv/fleet")
    monkeypatch.delenv("REGATTA_HOME")
    assert default_home() == Path.home() / ".local/share/regatta"


def test_a_port_that_becomes_free_is_waited_for() -> None:
    """A killed server's broker ends a moment later; another program does not, and is told."""
    taken = listen("127.0.0.1", 0, "broker")
    port = taken.getsockname()[1]
    with pytest.raises(Misuse, match="is taken"):
        wait_until_free("127.0.0.1", port, "broker", timeout_s=0.0)
    release = threading.Timer(0.1, taken.close)
    release.start()
    wait_until_free("127.0.0.1", port, "broker", timeout_s=10.0)
    release.join()
