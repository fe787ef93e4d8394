"""An event as a user's function sees it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar, overload

import orjson

T = TypeVar("T")

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_UNPARSED: Final = object()


class Event:
    """One message of the log.

    `ts` is the time of ingest in µs since the Unix epoch, `client` the publisher's client identifier. A test of a
    user's function makes one of a topic and a payload alone.
    """

    __slots__ = ("_parsed", "client", "payload", "qos", "retain", "seq", "topic", "ts")

    def __init__(
        self,
        topic: str,
        payload: bytes,
        qos: int = 1,
        retain: bool = False,
        client: str = "",
        seq: int = 0,
        ts: int = 0,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.client = client
        self.seq = seq
        self.ts = ts
        self._parsed: object = _UNPARSED

    @property
    def levels(self) -> list[str]:
        """The levels of the topic: `plant/7/temperature` has `7` at 1."""
        return self.topic.split("/")

    @property
    def text(self) -> str:
        """The payload as text.

        Raises:
            UnicodeDecodeError: it is not UTF-8.
        """
        return self.payload.decode()

    @property
    def time(self) -> datetime:
        """The time of ingest, in UTC."""
        return EPOCH + timedelta(microseconds=self.ts)

    @overload
    def json(self) -> object: ...

    @overload
    def json(self, kind: type[T]) -> T: ...

    def json(self, kind: type[object] = object) -> object:
        """The payload as JSON, parsed once however often it is asked for; `kind` is what it must be, such as `dict`.

        Raises:
            ValueError: it is not JSON.
            TypeError: it is JSON of another kind.
        """
        parsed = self._parsed
        if parsed is _UNPARSED:
            parsed = self._parsed = orjson.loads(self.payload)
        if not isinstance(parsed, kind):
            raise TypeError(f"the payload is a JSON {type(parsed).__name__}, not a {kind.__name__}")
        return parsed

    def number(self, field: str = "") -> float:
        """The number that the JSON payload is, or that stands in a field of it; dots lead inside: `motor.speed`.

        Raises:
            ValueError: the payload is not JSON.
            KeyError: there is no such field.
            TypeError: what is there is no number.
        """
        value = self.json()
        if field:
            for name in field.split("."):
                if not isinstance(value, dict):
                    raise TypeError(f"cannot look for {name!r} in a JSON {type(value).__name__}")
                value = value[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{field or 'the payload'} is a JSON {type(value).__name__}, not a number")
        return value
