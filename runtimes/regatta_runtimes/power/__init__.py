"""Electrical power: sensors found by name or given by the user, recorded beside a load, and integrated to energy.

- `find_sensor`, `open_sensor`: what measures on this board, or why nothing does (finder.py)
- `Recorder`: reads it on a thread of its own, so that a sensor that hangs stops nothing (recorder.py)
- `level`, `idle_of`, `energy_of`: energy per inference with its uncertainty; pure (level.py, energy.py)

Unknown is a reason, never 0.
"""

from __future__ import annotations

from regatta_runtimes.power.finder import find_sensor, open_sensor
from regatta_runtimes.power.sensor import PowerSensor, Reading, UnknownPower
from regatta_runtimes.power.settings import PowerSettings

__all__ = ["PowerSensor", "PowerSettings", "Reading", "UnknownPower", "find_sensor", "open_sensor"]
