"""Pipelines: frames from a source, a model's answers, results to sinks. Each runs as a process of its own.

`settings.py` says what can be configured, `running.py` runs one. A source's thread reads frames into a bounded line
(`frames.py`); what does not fit is dropped by policy, and counted.
"""
