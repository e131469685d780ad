"""The one MQTT adapter: `MqttBus`, a connection over mutual TLS that keeps itself up. Only here is paho imported.

    bus.py          for ever: a connection, its end told, a wait, the next one
    connection.py   one connection: its session, and whose turn it is to read and to write
    arriving.py     messages on their way in: into the inbox, and only then acknowledged
    departing.py    messages on their way out, until they are acknowledged, and the goodbye
    crossing.py     between the network's thread and the owner's
    ending.py       why one is ended from our side
    settings.py     to whom, as whom, within which limits
    packets.py      what packets weigh

One thread per bus does all the network work and owns the paho client; the owner's thread only appends to a bounded
line (outgoing.py), and this thread only puts events on the owner's bounded inbox. A new paho client is made for each
connection, so nothing of a broken one is left, and renewed certificates are read again from their files.

Not here: what is said, and when. MQTT 3.1.1 and QoS 0 and 1 only, so that every broker will do (wire.md).
"""

from __future__ import annotations

from regatta_protocol.mqtt.bus import MqttBus
from regatta_protocol.mqtt.packets import MAX_PACKET_BYTES
from regatta_protocol.mqtt.settings import MqttConfig

__all__ = ["MAX_PACKET_BYTES", "MqttBus", "MqttConfig"]
