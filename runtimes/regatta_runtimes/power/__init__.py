"""Electrical power: sensors found by name or given by the user, recorded beside a load, and integrated to energy.

- `find_sensor`, `open_sensor`: what measures on this board, or why nothing does (finder.py)
- `Recorder`: reads it on a thread of its own, so that a sensor that hangs stops nothing (recorder.py)
- `level`, `idle_of`, `energy_of`: energy per inference with its uncertainty; pure (level.py, energy.py)

Unknown is a reason, never 0.
Nothing is imported here: the agent's control process needs settings.py alone.
"""
