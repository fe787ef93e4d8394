"""Fields of packets, changed; and packets made up, mostly valid ones that lead to much state."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from tests.conformance.packets import PROPERTIES, Fields, Value
from tests.fuzz.setups import MEMORY_LEVEL, MOUNT

_MANY: Final = 200
"""Levels of a topic that has many."""
_LONG: Final = 3000
"""Characters of a text that is long; setups differ in whether it still fits."""

TOPICS: Final = (
    *("x/a", "x/b", "x/a/b", "x/a/b/c", "x", "/", "/x", "x/", "x//a", "x/a/", " ", "x/é𝄞"),
    *(
        f"x/{MEMORY_LEVEL}",
        f"{MEMORY_LEVEL}/a",
        f"{MOUNT}x/a",
        "$x",
        "$SYS",
        "$SYS/x",
        "$SYS/broker/connection/b/state",
    ),
    *("$share", "$share/g/x", "/".join("x" * _MANY), "x/" + "l" * 300),
)
FILTERS: Final = (
    *TOPICS,
    *("#", "+", "+/+", "x/#", "x/+", "+/a", "/#", "/+", "+/#", "x/+/b", "x/+/#", "+/+/+", "$SYS/#", "$x/+"),
    *(
        "$replay/all/#",
        "$replay/all/x/#",
        "$replay/last=2;until=now/x/+",
        "$replay/seq=3;speed=1000/x/a",
        "$replay/ago=1s/+/+",
    ),
    *("$share/g/x/#", "$share/g/#", "$share/h/x/+", "$share/g/x/a", "$share/g/$SYS/#", "$share/gé/+/a"),
    *("+/" * _MANY + "#", "/" * _MANY, f"{MOUNT}#"),
)
_BAD_FILTERS: Final = (
    "",
    "$replay/all",
    "$replay/seq=x/#",
    "$replay/time=1e99/x",
    "$replay/last=99999999/#",
    "#/x",
    "x#",
    "x/#/y",
    "x+",
    "+x/a",
    "$share//x",
    "$share/g",
    "$share/g/",
    "$share/+/x",
    "\0",
)
_BAD_TOPICS: Final = ("", "x/#", "+", "\0", "x/+/b")
CLIENT_IDS: Final = ("xa", "xb", "xc", "", "x" * 30, "é")
USERS: Final = ("me", "you", "", "someone")
PASSWORDS: Final = ("secret", "wrong", "")

_NUMBERS: Final = {
    "1": (0, 1, 2, 3, 0x7F, 0x80, 0xFF),
    "2": (0, 1, 2, 3, 4, 16, 17, 0x7FFF, 0xFFFF),
    "4": (0, 1, 2, 3, 10, 40, 200, 65_535, 65_536, 0x7FFFFFFF, 0xFFFFFFFF),
    "v": (0, 1, 127, 128, 16_384, 268_435_455),
}
_MESSAGE_PROPERTIES: Final = (
    *("payload-format", "message-expiry", "content-type", "response-topic", "correlation-data", "user", "topic-alias"),
)
_CONNECT_PROPERTIES: Final = (
    *("session-expiry", "receive-maximum", "maximum-packet-size", "topic-alias-maximum", "user"),
    *("request-response-information", "request-problem-information"),
)

Named = tuple[str, Fields]
"""The type of a packet, and its fields."""


# -- making packets up


class Inventor:
    """Makes packets up. Every message of it has a payload of its own, unless it says nothing."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._messages = 0

    def connect(self, client_id: str | None = None, method: float = 0.05) -> Named:
        """A CONNECT that is mostly good, and mostly for a session that lasts; so often it names a method."""
        rng = self._rng
        clean = int(rng.random() < 0.4)
        name = rng.choice(CLIENT_IDS) if client_id is None else client_id
        fields: list[tuple[str, Value]] = [("client", name), ("clean", clean)]
        if rng.random() < 0.3:
            fields.append(("keep-alive", rng.choice((0, 1, 10, 0xFFFF))))
        if rng.random() < 0.7:
            fields.append(("session-expiry", rng.choice((0, 1, 100, 100, 0xFFFFFFFF))))
        if rng.random() < 0.4:
            fields.append(("receive-maximum", rng.choice((1, 2, 3, 20, 0xFFFF))))
        if rng.random() < 0.2:
            fields.append(("maximum-packet-size", rng.choice((5, 20, 40, 60, 100, 1000, 0xFFFFFFFF))))
        fields += [(each, self._property(each)) for each in _CONNECT_PROPERTIES[3:] if rng.random() < 0.15]
        if rng.random() < 0.3:
            fields += [("will-topic", rng.choice(TOPICS)), ("will-payload", self._payload())]
            fields += [("will-qos", rng.randrange(3)), ("will-retain", int(rng.random() < 0.3))]
            if rng.random() < 0.5:
                fields.append(("will.will-delay", rng.choice((0, 1, 50, 1000, 0xFFFFFFFF))))
            if rng.random() < 0.3:
                name = rng.choice(_MESSAGE_PROPERTIES[:-1])
                fields.append((f"will.{name}", self._property(name)))
        if rng.random() < 0.4:
            fields += [("username", rng.choice(USERS)), ("password", rng.choice(PASSWORDS))]
        if rng.random() < method:
            fields.append(("authentication-method", rng.choice(("slow", "slow", "slow", "none", ""))))
        return "CONNECT", tuple(fields)

    def packet(self) -> Named:
        """Any other packet that a client may send."""
        make = self._rng.choices(_MAKERS, _WEIGHTS)[0]
        return make(self)

    def wide(self) -> Named:
        """A subscription that gets nearly everything."""
        rng = self._rng
        return "SUBSCRIBE", (
            ("id", self._id()),
            ("filter", rng.choice(("#", "x/#", "+/+"))),
            ("qos", rng.choice((1, 2, 2))),
        )

    def burst(self) -> list[Named]:
        """More messages at once than some take, or than are acknowledged in time."""
        rng = self._rng
        start, qos = rng.choice((1, 1, 7, 0xFFFA)), rng.choice((0, 1, 2, 2, -1))
        found: list[Named] = []
        for number in range(rng.choice((5, 7, 12, 22, 60))):
            _, fields = self.publish()
            kept = tuple(field for field in fields if field[0] not in ("id", "qos", "dup"))
            level = qos if qos >= 0 else rng.randrange(3)
            id: Fields = (("id", (start + number - 1) % 0xFFFF + 1),) if level else ()
            found.append(("PUBLISH", (*kept, ("qos", level), *id)))
        return found

    def auth(self) -> Named:
        """A step of an exchange, mostly one that proves who the client is."""
        rng = self._rng
        if rng.random() < 0.5:
            fields: list[tuple[str, Value]] = [("reason", rng.choice((0x18, 0x19))), ("authentication-method", "slow")]
            return "AUTH", (*fields, ("authentication-data", "go"))
        fields = [("reason", rng.choice((0x18, 0x18, 0x18, 0x19, 0x19, 0)))]
        fields.append(("authentication-method", rng.choice(("slow", "slow", "slow", "slow", "none"))))
        if rng.random() < 0.8:
            fields.append(("authentication-data", rng.choice(("go", "go", "go", "", "no"))))
        return "AUTH", tuple(fields)

    def publish(self) -> Named:
        """A message."""
        rng = self._rng
        qos = rng.choice((0, 1, 1, 2, 2))
        fields: list[tuple[str, Value]] = [("topic", rng.choice(TOPICS[:10] if rng.random() < 0.7 else TOPICS))]
        fields += [("qos", qos), ("retain", int(rng.random() < 0.25)), ("payload", self._payload())]
        if qos:
            fields += [("id", self._id()), ("dup", int(rng.random() < 0.1))]
        for _ in range(rng.choice((0, 0, 0, 1, 2))):
            name = rng.choice(_MESSAGE_PROPERTIES)
            if name == "user" or all(name != each for each, _ in fields):
                fields.append((name, self._property(name)))
        if rng.random() < 0.1:
            fields = [field for field in fields if field[0] not in ("topic", "topic-alias")]
            fields += [("topic", ""), ("topic-alias", rng.randint(1, 3))]
        return "PUBLISH", tuple(fields)

    def _subscribe(self) -> Named:
        rng = self._rng
        fields: list[tuple[str, Value]] = [("id", self._id())]
        if rng.random() < 0.3:
            fields.append(("subscription-id", rng.choice((1, 2, 128, 268_435_455))))
        for _ in range(rng.choice((1, 1, 2, 3, 12))):
            filter = rng.choice(FILTERS)
            fields += [("filter", filter), ("qos", rng.randrange(3))]
            if rng.random() < 0.3 and not filter.startswith("$share"):
                fields.append(("no-local", 1))
            fields += [("as-published", int(rng.random() < 0.3)), ("handling", rng.choice((0, 0, 0, 1, 2)))]
        return "SUBSCRIBE", tuple(fields)

    def _unsubscribe(self) -> Named:
        filters = self._rng.sample(FILTERS, self._rng.choice((1, 1, 3)))
        return "UNSUBSCRIBE", (("id", self._id()), *(("filter", filter) for filter in filters))

    def _acknowledgement(self) -> Named:
        rng = self._rng
        fields: list[tuple[str, Value]] = [("id", self._id())]
        if rng.random() < 0.2:
            fields.append(("reason", rng.choice((0, 0x10, 0x80, 0x92, 0x97))))
        return rng.choice(("PUBACK", "PUBREC", "PUBCOMP", "PUBREL", "PUBREL")), tuple(fields)

    def _pingreq(self) -> Named:
        return "PINGREQ", ()

    def _disconnect(self) -> Named:
        rng = self._rng
        fields: Fields = ()
        if rng.random() < 0.4:
            fields = (("reason", rng.choice((0, 4, 0x80))),)
            if rng.random() < 0.7:
                fields += (("session-expiry", rng.choice((0, 1, 100, 0xFFFFFFFF))),)
        return "DISCONNECT", fields

    def _id(self) -> int:
        return self._rng.choice((1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 0xFFFF))

    def _payload(self) -> Value:
        rng = self._rng
        self._messages += 1
        if rng.random() < 0.08:
            return b""
        size = rng.choice((0, 0, 0, 50, 400)) if rng.random() < 0.95 else _LONG
        return f"m{self._messages} ".encode() + b"." * size

    def _property(self, name: str) -> Value:
        rng = self._rng
        form = PROPERTIES[name][1]
        if name == "topic-alias":
            return rng.randint(1, 4)
        if name in ("payload-format", "request-problem-information", "request-response-information"):
            return rng.randrange(2)
        if name == "response-topic":
            return rng.choice(TOPICS)
        if form in _NUMBERS:
            return rng.choice(_NUMBERS[form])
        return f"{name}:{rng.randrange(3)}"


_MAKERS: Final[tuple[Callable[[Inventor], Named], ...]] = (
    Inventor.publish,
    Inventor._subscribe,
    Inventor._unsubscribe,
    Inventor._acknowledgement,
    Inventor._pingreq,
    Inventor._disconnect,
    Inventor.auth,
)
_WEIGHTS: Final = (40, 18, 5, 18, 3, 3, 1)


# -- changing them


def mutated(rng: Random, kind: str, fields: Fields) -> Fields:
    """The fields of a packet, with one or a few of them changed, added, repeated or gone."""
    changed = list(fields)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(_MUTATIONS)(rng, kind, changed)
    return tuple(changed)


def _change(rng: Random, kind: str, fields: list[tuple[str, Value]]) -> None:
    if not fields:
        return
    at = rng.randrange(len(fields))
    name, value = fields[at]
    fields[at] = (name, _another(rng, name, value))


def _another(rng: Random, name: str, value: Value) -> Value:
    if name in ("topic", "will-topic"):
        return rng.choice(TOPICS + _BAD_TOPICS)
    if name == "filter":
        return rng.choice(FILTERS + _BAD_FILTERS)
    if name == "client":
        return rng.choice(CLIENT_IDS)
    if name in ("qos", "will-qos"):
        return rng.choice((0, 1, 2, 3))
    if name in ("dup", "retain", "clean", "will-retain", "no-local", "as-published"):
        return 1 - value if value in (0, 1) and isinstance(value, int) else 1
    if name == "handling":
        return rng.randrange(4)
    form = PROPERTIES.get(name.removeprefix("will."), (0, "2", frozenset()))[1]
    if isinstance(value, int):
        return rng.choice(_NUMBERS.get(form, _NUMBERS["2"]))
    return rng.choice((b"", b"\0", b"\xff", "x", "y:z", b"l" * _LONG, value))


def _add_property(rng: Random, kind: str, fields: list[tuple[str, Value]]) -> None:
    name = rng.choice(tuple(PROPERTIES))
    form = PROPERTIES[name][1]
    value: Value = rng.choice(_NUMBERS[form]) if form in _NUMBERS else rng.choice(("", "x", "a:b", b"\xff"))
    prefix = "will." if kind == "CONNECT" and rng.random() < 0.3 else ""
    fields.append((prefix + name, value))


def _repeat(rng: Random, kind: str, fields: list[tuple[str, Value]]) -> None:
    if fields:
        fields.insert(rng.randrange(len(fields) + 1), rng.choice(fields))


def _remove(rng: Random, kind: str, fields: list[tuple[str, Value]]) -> None:
    if fields:
        del fields[rng.randrange(len(fields))]


def _spoil(rng: Random, kind: str, fields: list[tuple[str, Value]]) -> None:
    """What makes a packet malformed."""
    choices: tuple[tuple[str, Value], ...] = (
        ("cut", rng.randint(1, 4)),
        ("tail", rng.choice((b"\0", b"\x01", b"xyz"))),
        ("first", rng.randrange(256)),
        ("flags", rng.randrange(256)),
        ("properties", rng.choice((b"", b"\0", b"\x01", b"\x80\x80", b"\x05\x26\0\0\0\0"))),
        ("options", rng.randrange(256)),
        ("level", rng.choice((3, 4, 5, 6, 0x84))),
        ("protocol", rng.choice(("MQTT", "MQIsdp", "MQTt", ""))),
        ("reason", rng.randrange(256)),
        ("length", rng.choice((b"\xff\xff\xff\x7f", b"\x80\x00", b"\xff\xff\xff\xff", b"\x02"))),
    )
    fields.append(rng.choice(choices))


_MUTATIONS: Final = (_change, _change, _change, _add_property, _add_property, _repeat, _remove, _spoil)
