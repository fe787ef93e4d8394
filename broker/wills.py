"""Wills: what a client leaves to be published when its connection ends otherwise than by a DISCONNECT.

A will is a row from CONNECT on, so that it is published even where the node is what ends. Its row goes with the group
that its message is in. One with a delay waits for it, or for the end of its session, or for its client to come back.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Final

from broker.mqtt.packets import Will
from broker.mqtt.properties import WILL, Property, decode_properties, encode_properties, first, number
from storage.interface import WILLS, Log, Row

SECOND: Final = 1_000_000
"""µs"""

_TRAVELS_NOT: Final = frozenset((Property.WILL_DELAY_INTERVAL, Property.MESSAGE_EXPIRY_INTERVAL))
"""Properties that say when, and until when, the message is to be published."""

Publish = Callable[[str, str, bytes, int, bool, bytes, int], None]
"""Client identifier, topic, payload, QoS, retain, properties in wire encoding, end of the message expiry interval."""


class Wills:
    """The wills of all clients. `publish` appends a message to the log's open group. Times are µs since the epoch."""

    def __init__(self, log: Log, publish: Publish) -> None:
        self._log = log
        self._publish = publish
        self._waiting: dict[str, tuple[int, Will]] = {}
        """Those of clients that are gone: client identifier to (when it is due, will)."""

    def keep(self, client_id: str, will: Will) -> None:
        """A client has connected with this will."""
        self._put(client_id, will, 0)

    def discard(self, client_id: str) -> None:
        """A client has disconnected in a way that needs none."""
        self._log.open.delete(WILLS, (client_id,))

    def withdraw(self, client_id: str) -> None:
        """A client is back before its will was due."""
        if self._waiting.pop(client_id, None) is not None:
            self.discard(client_id)

    def leave(self, client_id: str, will: Will, now: int, lasting: bool) -> None:
        """A client's connection has ended so that this is to be published: after its delay where the session lasts."""
        delay = number(will.properties, Property.WILL_DELAY_INTERVAL, 0)
        if delay and lasting:
            due = now + delay * SECOND
            self._waiting[client_id] = (due, will)
            self._put(client_id, will, due)
        else:
            self._execute(client_id, will, now)

    def session_ended(self, client_id: str, now: int) -> None:
        """A will is published no later than its session ends. [MQTT-3.1.2-8]"""
        waiting = self._waiting.pop(client_id, None)
        if waiting is not None:
            self._execute(client_id, waiting[1], now)

    def forget(self, accepts: Callable[[str], bool]) -> None:
        """Publish nothing of what waits for topics that are accepted."""
        for client_id in [client_id for client_id, (_, will) in self._waiting.items() if accepts(will.topic)]:
            self.withdraw(client_id)

    def tick(self, now: int) -> None:
        """Publish what is due."""
        for client_id, (due, will) in list(self._waiting.items()):
            if now >= due:
                del self._waiting[client_id]
                self._execute(client_id, will, now)

    def restore(self, now: int, sessions: Container[str]) -> None:
        """Take up those of an earlier run. A client that was connected when it ended is gone since now. Blocks.

        A session that is not among these has ended with that run, and its will waits no longer. [MQTT-3.1.2-8]
        """
        for row in self._log.rows(WILLS):
            client_id, will, due = _read(row)
            if client_id in sessions:
                delay = number(will.properties, Property.WILL_DELAY_INTERVAL, 0) * SECOND
                self._waiting[client_id] = (due or now + delay, will)
            else:
                self._execute(client_id, will, now)

    def _execute(self, client_id: str, will: Will, now: int) -> None:
        self.discard(client_id)
        properties = encode_properties(tuple(p for p in will.properties if p[0] not in _TRAVELS_NOT))
        interval = first(will.properties, Property.MESSAGE_EXPIRY_INTERVAL)
        expires = now + interval * SECOND if isinstance(interval, int) else 0
        self._publish(client_id, will.topic, will.payload, will.qos, will.retain, properties, expires)

    def _put(self, client_id: str, will: Will, due: int) -> None:
        delay = number(will.properties, Property.WILL_DELAY_INTERVAL, 0)
        properties = encode_properties(will.properties)
        values = (due, delay, will.topic, will.payload, will.qos, int(will.retain), properties)
        self._log.open.put(WILLS, (client_id,), values)


def _read(row: Row) -> tuple[str, Will, int]:
    """Client identifier, will, and when it is due (0: its client is connected)."""
    client_id, due, _, topic, payload, qos, retain, properties = row
    assert isinstance(client_id, str)
    assert isinstance(due, int)
    assert isinstance(topic, str)
    assert isinstance(payload, bytes)
    assert isinstance(qos, int)
    assert isinstance(properties, bytes)
    return client_id, Will(topic, payload, qos, bool(retain), decode_properties(properties, WILL)), due
