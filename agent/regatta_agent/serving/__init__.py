"""The serving worker: a process that loads one placed candidate and answers the Open Inference Protocol v2.

`python -m regatta_agent.serving SPEC.json` starts it. `spec` and `events` are what its parent needs; they import no
numpy and no runtime.
"""
