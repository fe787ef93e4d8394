"""Packets as scripts name them, and their bytes: a codec that shares nothing with the broker's.

What is written may break every rule: fields stand in the order given, as often as given, where they don't belong, and
`first`, `length`, `cut`, `tail` and the like spoil what is well-formed. What is read must keep every rule of the
version, or `Unreadable` is raised: whatever the broker says is checked by this in each script.

The fields of a packet are pairs (name, value); a value is an int, a str or bytes. Properties have the names of the
specification in lower case with hyphens, without `indicator`, `interval`, `identifier` and `available` at their end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

Value = int | str | bytes
Fields = tuple[tuple[str, Value], ...]

KINDS: Final = (
    "RESERVED",
    "CONNECT",
    "CONNACK",
    "PUBLISH",
    "PUBACK",
    "PUBREC",
    "PUBREL",
    "PUBCOMP",
    "SUBSCRIBE",
    "SUBACK",
    "UNSUBSCRIBE",
    "UNSUBACK",
    "PINGREQ",
    "PINGRESP",
    "DISCONNECT",
    "AUTH",
)

PROPERTIES: Final[dict[str, tuple[int, str, frozenset[str]]]] = {
    name: (id, form, frozenset(places.split()))
    for name, id, form, places in (
        ("payload-format", 0x01, "1", "PUBLISH"),
        ("message-expiry", 0x02, "4", "PUBLISH"),
        ("content-type", 0x03, "s", "PUBLISH"),
        ("response-topic", 0x08, "s", "PUBLISH"),
        ("correlation-data", 0x09, "b", "PUBLISH"),
        ("subscription-id", 0x0B, "v", "PUBLISH"),
        ("session-expiry", 0x11, "4", "CONNACK"),
        ("assigned-client", 0x12, "s", "CONNACK"),
        ("server-keep-alive", 0x13, "2", "CONNACK"),
        ("authentication-method", 0x15, "s", "CONNACK AUTH"),
        ("authentication-data", 0x16, "b", "CONNACK AUTH"),
        ("request-problem-information", 0x17, "1", ""),
        ("will-delay", 0x18, "4", ""),
        ("request-response-information", 0x19, "1", ""),
        ("response-information", 0x1A, "s", "CONNACK"),
        ("server-reference", 0x1C, "s", "CONNACK DISCONNECT"),
        ("reason-string", 0x1F, "s", "CONNACK PUBACK PUBREC PUBREL PUBCOMP SUBACK UNSUBACK DISCONNECT AUTH"),
        ("receive-maximum", 0x21, "2", "CONNACK"),
        ("topic-alias-maximum", 0x22, "2", "CONNACK"),
        ("topic-alias", 0x23, "2", "PUBLISH"),
        ("maximum-qos", 0x24, "1", "CONNACK"),
        ("retain-available", 0x25, "1", "CONNACK"),
        ("user", 0x26, "p", "CONNACK PUBLISH PUBACK PUBREC PUBREL PUBCOMP SUBACK UNSUBACK DISCONNECT AUTH"),
        ("maximum-packet-size", 0x27, "4", "CONNACK"),
        ("wildcard", 0x28, "1", "CONNACK"),
        ("subscription-id-available", 0x29, "1", "CONNACK"),
        ("shared", 0x2A, "1", "CONNACK"),
    )
}
"""Of each property: identifier, form of its value, and the packets that a server may send it in."""

REASONS: Final[dict[str, frozenset[int]]] = {
    "CONNACK": frozenset((0, *range(0x80, 0x8B), 0x8C, 0x90, 0x95, 0x97, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9F)),
    "PUBACK": frozenset((0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99)),
    "PUBREC": frozenset((0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99)),
    "PUBREL": frozenset((0, 0x92)),
    "PUBCOMP": frozenset((0, 0x92)),
    "SUBACK": frozenset((0, 1, 2, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2)),
    "UNSUBACK": frozenset((0, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91)),
    "DISCONNECT": frozenset((*range(0x80, 0x84), 0x87, 0x89, *range(0x8B, 0x91), *range(0x93, 0xA3))),
    "AUTH": frozenset((0, 0x18)),
}
"""The reason codes that a server of MQTT 5 may put where."""

PROTOCOLS: Final = {3: "MQIsdp", 4: "MQTT", 5: "MQTT"}


class Unreadable(Exception):
    """What the broker sent is no packet of the version."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet that the broker has sent."""

    kind: str
    fields: Fields

    def all(self, name: str) -> tuple[Value, ...]:
        """The values of a field, in order."""
        return tuple(value for each, value in self.fields if each == name)

    def __str__(self) -> str:
        return " ".join((self.kind, *(f"{name}={value!r}" for name, value in self.fields)))


# -- writing


def varint(number: int) -> bytes:
    """A variable byte integer."""
    written = b""
    while number > 127:
        written += bytes((number % 128 + 128,))
        number //= 128
    return written + bytes((number,))


def data(value: Value) -> bytes:
    """A value behind its length of two bytes."""
    value = raw(value)
    return len(value).to_bytes(2) + value


def raw(value: Value) -> bytes:
    """A value as bytes."""
    if isinstance(value, bytes):
        return value
    return str(value).encode()


class _Fields:
    """The fields of one packet, on their way into bytes."""

    def __init__(self, fields: Fields, version: int) -> None:
        self.fields = fields
        self.version = version

    def get(self, name: str, default: Value) -> Value:
        """The first value of a field."""
        return next((value for each, value in self.fields if each == name), default)

    def number(self, name: str, default: int = 0) -> int:
        value = self.get(name, default)
        assert isinstance(value, int), f"{name} is a number"
        return value

    def __contains__(self, name: str) -> bool:
        return any(each == name for each, _ in self.fields)

    def properties(self, prefix: str = "", name: str = "properties") -> bytes:
        """The properties with their length, in MQTT 5; those of the will have a prefix."""
        if self.version < 5:
            return b""
        if name in self:
            return raw(self.get(name, b""))
        written = b"".join(
            property_bytes(each.removeprefix(prefix), value)
            for each, value in self.fields
            if each.startswith(prefix) and each.removeprefix(prefix) in PROPERTIES
        )
        return varint(len(written)) + written


def property_bytes(name: str, value: Value) -> bytes:
    """One property."""
    id, form, _ = PROPERTIES[name]
    if form in "124":
        assert isinstance(value, int), f"{name} is a number"
        written = value.to_bytes(int(form))
    elif form == "v":
        assert isinstance(value, int), f"{name} is a number"
        written = varint(value)
    elif form == "p":
        left, _, right = raw(value).partition(b":")
        written = data(left) + data(right)
    else:
        written = data(value)
    return bytes((id,)) + written


def encode(kind: str, fields: Fields, version: int) -> bytes:
    """The bytes of a packet, well-formed or not."""
    given = _Fields(fields, version)
    flags, body = _BODIES[kind](given)
    if "body" in given:
        body = raw(given.get("body", b""))
    if cut := given.number("cut"):
        body = body[:-cut]
    body += raw(given.get("tail", b""))
    first = given.number("first", KINDS.index(kind) << 4 | flags)
    length = raw(given.get("length", b"")) if "length" in given else varint(len(body))
    return bytes((first,)) + length + body


def _connect(given: _Fields) -> tuple[int, bytes]:
    version = given.version
    flags = given.number("clean", 1) << 1
    payload = data(given.get("client", ""))
    if "will-topic" in given:
        flags |= 0x04 | given.number("will-qos") << 3 | given.number("will-retain") << 5
        payload += given.properties("will.", "will-properties")
        payload += data(given.get("will-topic", "")) + data(given.get("will-payload", ""))
    if "username" in given:
        flags |= 0x80
        payload += data(given.get("username", ""))
    if "password" in given:
        flags |= 0x40
        payload += data(given.get("password", ""))
    head = data(given.get("protocol", PROTOCOLS[version])) + bytes((given.number("level", version),))
    head += bytes((given.number("flags", flags),)) + given.number("keep-alive").to_bytes(2)
    return 0, head + given.properties() + payload


def _publish(given: _Fields) -> tuple[int, bytes]:
    qos = given.number("qos")
    flags = given.number("dup") << 3 | qos << 1 | given.number("retain")
    id = given.number("id").to_bytes(2) if qos or "id" in given else b""
    return flags, data(given.get("topic", "")) + id + given.properties() + raw(given.get("payload", ""))


def _acknowledgement(given: _Fields) -> tuple[int, bytes]:
    return 0, given.number("id").to_bytes(2) + _reasoned(given)


def _pubrel(given: _Fields) -> tuple[int, bytes]:
    return 2, given.number("id").to_bytes(2) + _reasoned(given)


def _reasoned(given: _Fields) -> bytes:
    """A reason code and properties: as little as says all."""
    properties = given.properties()
    if given.version == 5 and (len(properties) > 1 or "properties" in given):
        return bytes((given.number("reason"),)) + properties
    return bytes((given.number("reason"),)) if "reason" in given else b""


def _subscribe(given: _Fields) -> tuple[int, bytes]:
    options: list[int] = []
    filters: list[Value] = []
    for name, value in given.fields:
        if name == "filter":
            filters.append(value)
            options.append(0)
        elif name in _OPTIONS:
            assert isinstance(value, int), f"{name} is a number"
            options[-1] |= value << _OPTIONS[name]
    asked = b"".join(data(filter) + bytes((option,)) for filter, option in zip(filters, options, strict=True))
    return 2, given.number("id", 1).to_bytes(2) + given.properties() + asked


_OPTIONS: Final = {"qos": 0, "no-local": 2, "as-published": 3, "handling": 4, "options": 0}


def _unsubscribe(given: _Fields) -> tuple[int, bytes]:
    filters = b"".join(data(value) for name, value in given.fields if name == "filter")
    return 2, given.number("id", 1).to_bytes(2) + given.properties() + filters


def _codes(given: _Fields) -> tuple[int, bytes]:
    codes = bytes(value for name, value in given.fields if name == "code" and isinstance(value, int))
    return 0, given.number("id", 1).to_bytes(2) + given.properties() + codes


def _connack(given: _Fields) -> tuple[int, bytes]:
    return 0, bytes((given.number("present"), given.number("reason"))) + given.properties()


_BODIES: Final[dict[str, Callable[[_Fields], tuple[int, bytes]]]] = {
    "RESERVED": lambda given: (0, b""),
    "CONNECT": _connect,
    "CONNACK": _connack,
    "PUBLISH": _publish,
    "PUBACK": _acknowledgement,
    "PUBREC": _acknowledgement,
    "PUBREL": _pubrel,
    "PUBCOMP": _acknowledgement,
    "SUBSCRIBE": _subscribe,
    "SUBACK": _codes,
    "UNSUBSCRIBE": _unsubscribe,
    "UNSUBACK": _codes,
    "PINGREQ": lambda given: (0, b""),
    "PINGRESP": lambda given: (0, b""),
    "DISCONNECT": lambda given: (0, _reasoned(given)),
    "AUTH": lambda given: (0, _reasoned(given)),
}


# -- reading


def take(held: bytearray) -> tuple[int, bytes] | None:
    """The first whole packet, taken off what has been read: its first byte and what follows the length."""
    length = shift = 0
    for at in range(1, 5):
        if at >= len(held):
            return None
        length |= (held[at] & 0x7F) << shift
        shift += 7
        if held[at] < 0x80:
            if at > 1 and held[at] == 0:
                raise Unreadable("the remaining length takes more bytes than it needs")
            break
    else:
        raise Unreadable("the remaining length has more than four bytes")
    end = at + 1 + length
    if len(held) < end:
        return None
    first, body = held[0], bytes(held[at + 1 : end])
    del held[:end]
    return first, body


class _Body:
    """What follows the fixed header of one packet, on its way into fields."""

    def __init__(self, body: bytes) -> None:
        self.left = body

    def take(self, size: int) -> bytes:
        if len(self.left) < size:
            raise Unreadable("the packet ends inside a field")
        taken, self.left = self.left[:size], self.left[size:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def data(self) -> bytes:
        return self.take(self.number(2))

    def text(self) -> str:
        try:
            text = self.data().decode()
        except UnicodeDecodeError as error:
            raise Unreadable("a string is not UTF-8") from error
        if "\0" in text:
            raise Unreadable("a string has U+0000 in it")
        return text

    def varint(self) -> int:
        number = shift = 0
        while True:
            byte = self.number(1)
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                if number.bit_length() <= shift - 7 and shift > 7:
                    raise Unreadable("a variable byte integer takes more bytes than it needs")
                return number
            if shift > 21:
                raise Unreadable("a variable byte integer has more than four bytes")

    def properties(self, kind: str) -> Iterable[tuple[str, Value]]:
        size = self.varint()
        inner = _Body(self.take(size))
        seen: set[str] = set()
        while inner.left:
            id = inner.varint()
            name = next((name for name, (each, _, _) in PROPERTIES.items() if each == id), f"0x{id:02x}")
            if name not in PROPERTIES or kind not in PROPERTIES[name][2]:
                raise Unreadable(f"a server sends no property {name} in {kind}")
            if name in seen and name not in ("user", "subscription-id"):
                raise Unreadable(f"{name} is given twice")
            seen.add(name)
            form = PROPERTIES[name][1]
            value: Value
            if form in "124":
                value = inner.number(int(form))
            elif form == "v":
                value = inner.varint()
            elif form == "s":
                value = inner.text()
            elif form == "p":
                value = f"{inner.text()}:{inner.text()}"
            else:
                value = inner.data()
            yield name, value


def decode(first: int, body: bytes, version: int) -> Packet:
    """A packet from a server.

    Raises:
        Unreadable: it breaks a rule of the version.
    """
    kind = KINDS[first >> 4]
    if kind in ("RESERVED", "CONNECT", "SUBSCRIBE", "UNSUBSCRIBE", "PINGREQ") or (version < 5 and kind == "AUTH"):
        raise Unreadable(f"a server sends no {kind}")
    if version < 5 and kind == "DISCONNECT":
        raise Unreadable("before MQTT 5 a server sends no DISCONNECT")
    flags = first & 0x0F
    if kind != "PUBLISH" and flags != (2 if kind == "PUBREL" else 0):
        raise Unreadable(f"{kind} with flags {flags}")
    left = _Body(body)
    fields = tuple(_READERS[kind](left, flags, version, kind))
    if left.left:
        raise Unreadable(f"{kind} is longer than its fields")
    for name, value in fields:
        if name in ("reason", "code") and version == 5 and value not in REASONS[kind]:
            raise Unreadable(f"{kind} with reason code {value!r}")
    return Packet(kind, fields)


def _read_connack(body: _Body, flags: int, version: int, kind: str) -> Iterable[tuple[str, Value]]:
    present, reason = body.number(1), body.number(1)
    if present > 1 or (present and (reason or version == 3)):
        raise Unreadable(f"CONNACK with flags {present} and reason {reason}")
    if version < 5 and reason > 5:
        raise Unreadable(f"CONNACK with return code {reason}")
    yield "present", present
    yield "reason", reason
    if version == 5:
        yield from body.properties(kind)


def _read_publish(body: _Body, flags: int, version: int, kind: str) -> Iterable[tuple[str, Value]]:
    qos, dup = flags >> 1 & 3, flags >> 3
    if qos == 3 or (dup and not qos):
        raise Unreadable(f"PUBLISH with flags {flags}")
    topic = body.text()
    if "+" in topic or "#" in topic:
        raise Unreadable(f"PUBLISH to {topic!r}")
    yield "dup", dup
    yield "qos", qos
    yield "retain", flags & 1
    yield "topic", topic
    if qos:
        yield "id", _read_id(body)
    if version == 5:
        yield from body.properties(kind)
    yield "payload", body.take(len(body.left))


def _read_id(body: _Body) -> int:
    id = body.number(2)
    if not id:
        raise Unreadable("packet identifier 0")
    return id


def _read_acknowledgement(body: _Body, flags: int, version: int, kind: str) -> Iterable[tuple[str, Value]]:
    yield "id", _read_id(body)
    if version == 5:
        yield from _read_reasoned(body, flags, version, kind)


def _read_reasoned(body: _Body, flags: int, version: int, kind: str) -> Iterable[tuple[str, Value]]:
    yield "reason", body.number(1) if body.left else 0
    if body.left:
        yield from body.properties(kind)


def _read_codes(body: _Body, flags: int, version: int, kind: str) -> Iterable[tuple[str, Value]]:
    yield "id", _read_id(body)
    if version == 5:
        yield from body.properties(kind)
    codes = body.take(len(body.left))
    if version < 5 and (kind == "UNSUBACK") == bool(codes):
        raise Unreadable(f"{kind} with {len(codes)} return codes")
    for code in codes:
        if version < 5 and code not in (0, 1, 2, 0x80):
            raise Unreadable(f"SUBACK with return code {code}")
        yield "code", code


_READERS: Final[dict[str, Callable[[_Body, int, int, str], Iterable[tuple[str, Value]]]]] = {
    "CONNACK": _read_connack,
    "PUBLISH": _read_publish,
    "PUBACK": _read_acknowledgement,
    "PUBREC": _read_acknowledgement,
    "PUBREL": _read_acknowledgement,
    "PUBCOMP": _read_acknowledgement,
    "SUBACK": _read_codes,
    "UNSUBACK": _read_codes,
    "PINGRESP": lambda body, flags, version, kind: (),
    "DISCONNECT": _read_reasoned,
    "AUTH": _read_reasoned,
}
