"""The user's own meter as a sensor: a command that prints a number, or a smart plug that tells its power by MQTT.

What they say is not trusted: bounded, and a figure only when it is one.
"""

from __future__ import annotations

import json
import os
import threading
import time
from functools import partial

from regatta_protocol.bus import Connected, Disconnected, Event, Message
from regatta_protocol.durable import read_bounded
from regatta_protocol.errors import Misuse
from regatta_runtimes.errors import SensorFault
from regatta_runtimes.power.process import output_of
from regatta_runtimes.power.sensor import Clock, PowerSensor, Reading, plausible, stamped
from regatta_runtimes.power.settings import CommandSettings, MqttSettings

__all__ = ["Plug", "command_sensor", "plug_sensor"]

_MAX_PASSWORD_BYTES = 1024
_MAX_PAYLOAD_BYTES = 16_384  # Tasmota's longest SENSOR message has about 1 KB
_MW_PER_UNIT = {"W": 1000.0, "mW": 1.0}
_QUOTE = 60


def command_sensor(settings: CommandSettings) -> PowerSensor:
    """Return the sensor that runs the command for each figure."""
    return PowerSensor(
        name=f"command:{os.path.basename(settings.run[0])}",  # noqa: PTH119 - a name, also of what is no path
        coverage=settings.coverage,
        method="measured",
        period_s=settings.period_s,
        read=stamped(partial(_run_mw, settings)),
        timeout_s=2 * settings.timeout_s,
    )


def _run_mw(settings: CommandSettings) -> float:
    text = output_of(settings.run, settings.timeout_s).strip()
    return _figure_mw(text, settings.unit, settings.run[0])


def _figure_mw(text: object, unit: str, source: str) -> float:
    """Return the milliwatts that `text`, a number or the digits of one, stands for."""
    try:
        if isinstance(text, bool) or not isinstance(text, int | float | str):
            raise ValueError
        number = float(text)
    except (ValueError, OverflowError) as err:
        raise SensorFault(f"{source} says {str(text)[:_QUOTE]!r} where a number is due") from err
    return plausible(number * _MW_PER_UNIT[unit], source)


def plug_sensor(settings: MqttSettings) -> PowerSensor:
    """Return the sensor that listens to the plug; it connects at once and keeps trying until it is closed.

    Raises:
        SensorFault: when the password or the CA cannot be read.
    """
    from regatta_protocol.mqtt import MqttBus, MqttConfig

    password = None
    if settings.password_file is not None:
        try:
            password = read_bounded(settings.password_file, _MAX_PASSWORD_BYTES).decode().strip("\r\n")
        except (OSError, ValueError) as err:
            raise SensorFault(f"the password in {settings.password_file} cannot be read: {err}") from err
    plug = Plug(settings)
    bus = MqttBus(
        MqttConfig(
            host=settings.host,
            port=settings.port,
            client_id=f"regatta-power-{os.getpid()}-{os.urandom(3).hex()}",  # a serving worker may listen as well
            ca_path=settings.ca_file,
            cert_path=None,
            key_path=None,
            filters=(settings.topic,),
            user_name=settings.user,
            password=password,
            clean_session=True,
        ),
        plug,
    )
    try:
        bus.start()
    except Misuse as err:
        raise SensorFault(str(err)) from err
    return PowerSensor(
        name=f"mqtt:{settings.topic}",
        coverage=settings.coverage,
        method="measured",
        period_s=settings.period_s,
        read=plug.read,
        close=bus.stop,
    )


class Plug:
    """The newest that the plug told. An inbox whose length is one: older figures were read, or nobody wanted them."""

    def __init__(self, settings: MqttSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()  # the bus puts on its thread, the recorder reads on its own
        self._newest: Reading | None = None
        self._fault: str | None = f"no broker answered yet at {settings.host}:{settings.port}"

    def put(self, item: Event, block: bool = True, timeout: float | None = None) -> None:
        """Take one event from the bus."""
        now_s = time.monotonic()
        with self._lock:
            if isinstance(item, Disconnected):
                self._fault = item.reason
            elif isinstance(item, Connected):
                self._fault = None
            elif isinstance(item, Message) and not item.retained:  # a retained one may be a week old
                try:
                    self._newest, self._fault = Reading(now_s, self._parse_mw(item.payload)), None
                except SensorFault as fault:
                    self._fault = str(fault)

    def read(self, clock: Clock) -> Reading:
        """Return the newest figure, with the time at which it came.

        Raises:
            SensorFault: when there is none, or what came last was none.
        """
        with self._lock:
            if self._fault is not None:
                raise SensorFault(self._fault)
            if self._newest is None:
                raise SensorFault(f"nothing has come on {self._settings.topic} yet: is it the plug's topic?")
            return self._newest

    def _parse_mw(self, payload: bytes) -> float:
        settings = self._settings
        if len(payload) > _MAX_PAYLOAD_BYTES:
            raise SensorFault(f"{settings.topic} has {len(payload)} bytes, over {_MAX_PAYLOAD_BYTES}")
        text = payload.decode("utf-8", "replace")
        value = text.strip() if not settings.field else _pick(text, settings.field, settings.topic)
        return _figure_mw(value, settings.unit, settings.topic)


def _pick(text: str, field: str, topic: str) -> object:
    """Return what stands at `field` in the JSON: keys and list indexes with dots between."""
    try:
        value = json.loads(text)
        for key in field.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as err:
        raise SensorFault(f"{topic} says {text[:_QUOTE]!r}, which has no {field}") from err
    return value
