"""The contract between a Regatta agent and its fleet: names, topics, messages, manifests, codec, errors, and MQTT.

Both programs import this and nothing of each other. No module here keeps state or knows a database, a runtime or a
command line. Start with messages.py (what is said), topics.py (where) and manifest.py (what is signed).
"""

__version__ = "0.1.0"
