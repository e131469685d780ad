"""The user's own meter: a command that prints a number, a smart plug by MQTT; both are bounded and not trusted."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from mosquitto import Wire, require_mosquitto, running_wire
from polling import wait_until
from regatta_agent.config import read_settings
from regatta_fleet.broker import find_mosquitto
from regatta_protocol.bus import Connected, Disconnected, Message
from regatta_protocol.errors import Rejected
from regatta_protocol.plain import read
from regatta_runtimes.errors import SensorFault
from regatta_runtimes.power.energy import Run, energy_of, idle_of
from regatta_runtimes.power.finder import open_sensor
from regatta_runtimes.power.level import Level, level
from regatta_runtimes.power.recorder import Recorder
from regatta_runtimes.power.sensor import PowerSensor, UnknownPower
from regatta_runtimes.power.settings import CommandSettings, MqttSettings, PowerSettings
from regatta_runtimes.power.user import Plug, command_sensor

TOPIC = "tele/plug/SENSOR"
TASMOTA = '{"Time":"2024-05-01T12:00:00","ENERGY":{"Total":3.1,"Power":%s,"Voltage":230}}'
DEADLINE_S = 15.0


def shell(script: str, **more: object) -> PowerSensor:
    values: dict[str, object] = {"run": ("/bin/sh", "-c", script), **more}
    return command_sensor(read(CommandSettings, values))


@pytest.mark.parametrize(
    ("script", "unit", "power_mw"),
    [("echo 12.5", "W", 12_500), ("printf 12.5", "W", 12_500), ("echo 870", "mW", 870), ("echo ' 1e1 '", "W", 10_000)],
)
def test_a_command_says_watts_or_milliwatts(script: str, unit: str, power_mw: float) -> None:
    """Its whole output is one number."""
    assert shell(script, unit=unit).read(time.monotonic).figure == pytest.approx(power_mw)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo hello", "says 'hello' where a number is due"),
        ("echo 5 W", "where a number is due"),
        ("true", "says '' where a number is due"),
        ("echo -5", "which no board draws"),
        ("echo nan", "which no board draws"),
        ("echo 1e12", "which no board draws"),
        ("echo out of luck >&2; exit 3", "ended with status 3: out of luck"),
        ("kill -9 $$", "ended with status -9"),
        ("yes", "wrote over 65536 bytes"),
        ("sleep 60", "was not done after 0.3 s"),
        ("exec >&- 2>&-; sleep 60", "closed its output and was not done after 0.3 s"),
    ],
)
def test_a_command_that_says_no_number_is_a_fault_that_says_why(script: str, words: str) -> None:
    """Text, silence, nonsense, failure, a flood, a hang: each by name, within its time limit."""
    with pytest.raises(SensorFault, match=words):
        shell(script, timeout_s=0.3).read(time.monotonic)


def test_a_command_that_is_not_there_is_named() -> None:
    """With the system's words."""
    with pytest.raises(SensorFault, match="/no/such/meter cannot be started: No such file"):
        command_sensor(CommandSettings(run=("/no/such/meter",))).read(time.monotonic)


def test_a_command_that_hangs_leaves_no_process(tmp_path: Path) -> None:
    """What it started is killed with it."""
    mark = tmp_path / "pid"
    with pytest.raises(SensorFault, match="not done"):
        shell(f"sleep 60 & echo $! >{mark}; wait", timeout_s=0.5).read(time.monotonic)

    child = int(mark.read_text())
    wait_until(lambda: not _runs(child), DEADLINE_S, "the command's own child has ended")


def _runs(process: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"command": {"run": []}}, "run"),
        ({"command": {"run": ["x"], "unit": "kW"}}, "unit"),
        ({"command": {"run": ["x"], "period_s": 0}}, "period_s"),
        ({"mqtt": {"host": "h", "topic": "tele/+/SENSOR"}}, "topic"),
        ({"mqtt": {"host": "h", "topic": "t", "password_file": "/p"}}, "password_file goes with user"),
        ({"command": {"run": ["x"]}, "sensor": "rapl"}, "sensor and command are given"),
        ({"factor": 0}, "factor"),
        ({"sensors": "rapl"}, "sensors"),
    ],
)
def test_settings_are_checked(section: dict[str, object], key: str) -> None:
    """The offending key is named."""
    with pytest.raises(Rejected, match=key):
        read_settings({"power": section}, "agent.toml")


def plug(**more: object) -> Plug:
    made = Plug(read(MqttSettings, {"host": "h", "topic": TOPIC, **more}))
    made.put(Connected(session_present=False))
    return made


@pytest.mark.parametrize(
    ("field", "unit", "payload", "power_mw"),
    [
        ("ENERGY.Power", "W", TASMOTA % "17", 17_000),
        ("ENERGY.Power", "W", TASMOTA % '"17.5"', 17_500),
        ("apower", "W", '{"id":0,"apower":8.9}', 8900),
        ("switch:0.apower", "W", '{"switch:0":{"apower":8.9}}', 8900),
        ("ENERGY.Power.1", "W", TASMOTA % "[1, 2]", 2000),
        ("", "mW", " 1234\n", 1234),
    ],
    ids=["tasmota", "digits in quotes", "shelly", "colon", "list", "plain"],
)
def test_a_plug_says_its_power_where_the_field_is(field: str, unit: str, payload: str, power_mw: float) -> None:
    """Keys and list indexes with dots between; no field takes the payload as the number."""
    told = plug(field=field, unit=unit)
    told.put(Message(TOPIC, payload.encode()))

    assert told.read(time.monotonic).figure == pytest.approx(power_mw)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "has no ENERGY.Power"),
        (b"\xff\xfe", "has no ENERGY.Power"),
        (b"[" * 5000, "has no ENERGY.Power"),
        (b"{}", "has no ENERGY.Power"),
        (b'{"ENERGY": 3}', "has no ENERGY.Power"),
        ((TASMOTA % "null").encode(), "where a number is due"),
        ((TASMOTA % "true").encode(), "where a number is due"),
        ((TASMOTA % "-3").encode(), "no board draws"),
        ((TASMOTA % "NaN").encode(), "no board draws"),
        ((TASMOTA % ("9" * 400)).encode(), "where a number is due"),
        (b"x" * 20_000, "has 20000 bytes"),
    ],
)
def test_a_plug_that_says_nonsense_is_a_fault_until_it_says_a_number(payload: bytes, words: str) -> None:
    """Nothing else is raised on the network's thread, and a good message mends it."""
    told = plug(field="ENERGY.Power")
    told.put(Message(TOPIC, payload))
    with pytest.raises(SensorFault, match=words):
        told.read(time.monotonic)

    told.put(Message(TOPIC, (TASMOTA % "3").encode()))
    assert told.read(time.monotonic).figure == 3000


def test_a_plug_that_is_silent_or_cut_off_says_so() -> None:
    """A retained message may be a week old; a figure from before the cut is none of now."""
    told = plug()
    told.put(Message(TOPIC, b"5", retained=True))
    with pytest.raises(SensorFault, match="nothing has come on tele/plug/SENSOR"):
        told.read(time.monotonic)
    told.put(Message(TOPIC, b"5"))
    told.put(Disconnected("the broker is gone"))
    with pytest.raises(SensorFault, match="the broker is gone"):
        told.read(time.monotonic)


def test_a_password_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Before anything is tried."""
    settings = MqttSettings(host="h", topic="t", user="u", password_file=tmp_path / "none")

    found = open_sensor(PowerSettings(mqtt=settings))

    assert isinstance(found, UnknownPower)
    assert str(tmp_path / "none") in found.reason


@contextmanager
def home_broker(folder: Path) -> Iterator[int]:
    """Run a Mosquitto as people have it at home: a password and no TLS."""
    require_mosquitto()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    passwords, settings = folder / "passwords", folder / "mosquitto.conf"
    passwords.write_text("meter:secret\n")
    passwords.chmod(0o600)
    subprocess.run(["mosquitto_passwd", "-U", str(passwords)], check=True, timeout=20)
    root = "user root\n" if os.geteuid() == 0 else ""
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\n{root}")
    child = subprocess.Popen(
        [find_mosquitto(), "-c", str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield port
    finally:
        child.terminate()
        child.wait(20)


def _publisher(port: int) -> paho.Client:
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.username_pw_set("meter", "secret")

    def connects() -> bool:
        try:
            client.connect("127.0.0.1", port)
        except OSError:
            return False
        return True

    wait_until(connects, DEADLINE_S, "the broker listens")
    client.loop_start()
    return client


@pytest.mark.alone
def test_a_smart_plug_of_known_energy_is_integrated_to_5_percent(tmp_path: Path) -> None:
    """A real Mosquitto with a password: 3 W idle, 9 W inferring, in noise and steps of 0.01 W."""
    chance = random.Random(6)
    (tmp_path / "secret").write_text("secret\n")
    with home_broker(tmp_path) as port:
        settings = MqttSettings(
            host="127.0.0.1", port=port, topic=TOPIC, field="ENERGY.Power", period_s=0.05, user="meter",
            password_file=tmp_path / "secret",
        )  # fmt: skip
        sensor = open_sensor(PowerSettings(mqtt=settings))
        assert isinstance(sensor, PowerSensor)
        publisher = _publisher(port)
        try:
            with Recorder(sensor) as recorder:

                def tell(power_w: float, seconds: float) -> Level:
                    start_s = recorder.now_s()
                    stop_s = start_s + seconds
                    while recorder.now_s() < stop_s:
                        publisher.publish(TOPIC, TASMOTA % f"{chance.gauss(power_w, 0.1):.2f}")
                        recorder.wait(min(stop_s, recorder.now_s() + 0.05))
                    found = level(recorder.span(start_s + 0.2, stop_s), sensor, 0.05, recorder.fault)
                    assert isinstance(found, Level), found
                    return found

                def heard() -> object:
                    publisher.publish(TOPIC, TASMOTA % "3")
                    return recorder.span(0, recorder.now_s()).readings

                wait_until(heard, DEADLINE_S, "the plug is heard")
                before, inferring, after = tell(3, 3), tell(9, 3), tell(3, 3)
        finally:
            publisher.loop_stop()
            sensor.close()

    power = energy_of([Run(inferring, 100)], idle_of(before, after), sensor, 0.05)
    assert power.energy_per_inference_mj == pytest.approx(6000 * inferring.duration_s / 100, rel=0.05)
    assert power.sensor == f"mqtt:{TOPIC}"


def test_a_broker_that_refuses_the_password_says_so(tmp_path: Path) -> None:
    """The reason is the broker's, not that nothing came."""
    (tmp_path / "wrong").write_text("guess")
    with home_broker(tmp_path) as port:
        settings = MqttSettings(
            host="127.0.0.1", port=port, topic=TOPIC, user="meter", password_file=tmp_path / "wrong"
        )
        sensor = open_sensor(PowerSettings(mqtt=settings))
        assert isinstance(sensor, PowerSensor)
        try:
            wait_until(lambda: "Not authorized" in _fault(sensor), DEADLINE_S, "the broker has refused")
        finally:
            sensor.close()


def test_a_broker_with_tls_is_checked_against_its_ca(tmp_path: Path) -> None:
    """The certificate is verified, so a broker that wants ours as well is reached and refuses."""
    with running_wire(tmp_path) as wire:
        sensor = open_sensor(PowerSettings(mqtt=_tls(wire)))
        assert isinstance(sensor, PowerSensor)
        try:
            wait_until(lambda: "no broker answered" not in _fault(sensor), DEADLINE_S, "the broker has answered")
            assert "certificate verify failed" not in _fault(sensor)
        finally:
            sensor.close()


def _tls(wire: Wire) -> MqttSettings:
    return MqttSettings(host="127.0.0.1", port=wire.broker.port, topic=TOPIC, ca_file=wire.authority.ca_path)


def _fault(sensor: PowerSensor) -> str:
    try:
        sensor.read(time.monotonic)
    except SensorFault as fault:
        return str(fault)
    return ""
