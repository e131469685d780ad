"""Presence and reports on their way out: the latest report wins, and is said again after every connection."""

from __future__ import annotations

import logging

from regatta_agent.core.batches import reports
from regatta_agent.core.facts import Facts
from regatta_agent.core.installs import AgentRecord
from regatta_agent.reporting import model_reports
from regatta_protocol import topics
from regatta_protocol.batch import BatchReport, ResultsReport
from regatta_protocol.bus import Bus, Will
from regatta_protocol.codec import encode
from regatta_protocol.errors import Retryable
from regatta_protocol.ids import DeviceId
from regatta_protocol.measurement import BoardFacts
from regatta_protocol.messages import ModelReport, Presence, Reported

__all__ = ["Reporter", "presence_will"]

logger = logging.getLogger(__name__)

_Said = tuple[int, tuple[ModelReport, ...], tuple[BatchReport, ...], tuple[ResultsReport, ...]]

_SHORTEST_PERIOD_S = 0.1  # a burst of steps is one report
_LONGEST_PERIOD_S = 86_400.0  # a report lost by a broker that was killed is made good within a day


def presence_will(device: DeviceId, boot: str, agent_version: str) -> Will:
    """Return what the broker says for us when we are gone."""
    presence = Presence(up=False, boot=boot, agent_version=agent_version)
    return Will(topics.up(device, topics.Up.STATE), encode(presence))


class Reporter:
    """Says what the device runs. Used by the loop's thread only."""

    def __init__(
        self, bus: Bus, device: DeviceId, board: BoardFacts, boot: str, agent_version: str, heartbeat_s: float
    ) -> None:
        self._bus = bus
        self._device = device
        self._board = board
        self._boot = boot
        self._version = agent_version
        self._heartbeat_s = heartbeat_s
        self._said: _Said | None = None
        self._said_s = float("-inf")
        self._beaten_s = float("-inf")  # when the device last said anything that shows it to be there

    def connected(self) -> None:
        """Say that the device is up; the report follows."""
        self._said = None
        self._said_s = float("-inf")
        self._say_up(retain=True)

    def beat(self, now_s: float) -> None:
        """Say that the device is still up, when it has said nothing for a heartbeat's time.

        It says what the broker retains already, in fewer bytes; a report instead would cost 2 MB a month.
        """
        if now_s - self._beaten_s >= self._heartbeat_s:
            self._beaten_s = now_s
            self._say_up(retain=False)

    def due(self, record: AgentRecord, facts: Facts, now_s: float, results: tuple[ResultsReport, ...] = ()) -> bool:
        """Return whether the fleet should hear something new, or after a day again that nothing is."""
        if now_s - self._said_s < _SHORTEST_PERIOD_S:
            return False
        return self._said != (record.generation, model_reports(record, facts), reports(record.batch), results) or (
            now_s - self._said_s >= _LONGEST_PERIOD_S
        )

    def send(self, record: AgentRecord, facts: Facts, now_s: float, results: tuple[ResultsReport, ...] = ()) -> None:
        """Publish the report under the record's sequence; when that fails it is due again.

        Raises:
            TooLarge: when the report is over the limit of a message.
        """
        models, batch = model_reports(record, facts), reports(record.batch)
        report = Reported(
            device=self._device,
            generation=record.generation,
            sequence=record.report_sequence,
            agent_version=self._version,
            boot=self._boot,
            board=self._board,
            bytes_received=record.bytes_received,
            models=models,
            batch=batch,
            results=results,
        )
        self._said_s = self._beaten_s = now_s
        self._said = (record.generation, models, batch, results)
        try:
            self._bus.publish(topics.up(self._device, topics.Up.REPORTED), encode(report))
        except Retryable as err:
            logger.debug("event=report_waits error=%s", err)
            self._said = None

    def _say_up(self, retain: bool) -> None:
        presence = Presence(up=True, boot=self._boot, agent_version=self._version)
        payload = encode(presence) if retain else presence.model_dump_json(exclude_defaults=True).encode()
        try:
            self._bus.publish(topics.up(self._device, topics.Up.STATE), payload, retain=retain)
        except Retryable as err:
            logger.debug("event=presence_waits error=%s", err)
