"""Runs a script against a live node, over a real socket.

Everything that is awaited comes within `PATIENCE`, or the script fails with the step and what has come instead. That
nothing comes is proved by the answer to a PINGREQ, never by waiting.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import Final

from tests.conformance.clock import Clock
from tests.conformance.packets import PROPERTIES, Packet, Unreadable, Value, decode, encode, raw, take
from tests.conformance.script import Pairs, Script, Step, value_of
from tests.conformance.wires import TCP, TRANSPORTS
from tests.node import Node

_RANGE: Final = re.compile(r"(\d+)\.\.(\d+)")
_REASONED: Final = ("PUBACK", "PUBREC", "PUBREL", "PUBCOMP", "DISCONNECT", "AUTH", "CONNACK")
_MESSAGE: Final = ("qos", "dup", "retain")
_NAME: Final = re.compile(r"\$[a-z]+")


class Violation(AssertionError):
    """The broker did not do what the script awaits."""


class Client:
    """One client of a script: at most one connection at a time."""

    def __init__(self, name: str, port: int, transport: type[TCP], version: int) -> None:
        self.name = name
        self._port = port
        self._transport = transport
        self._version = version
        self._wire: TCP | None = None
        self._held = bytearray()
        self.accepted = False
        """Whether it is connected, as MQTT has it."""

    def send(self, data: bytes) -> None:
        """Send bytes, on a new connection where there is none."""
        if self._wire is None:
            self._wire = self._transport(self._port)
            self._held.clear()
        self._wire.send(data)

    def next(self) -> Packet | None:
        """The next packet; None: the broker has closed the connection."""
        taken = self.take()
        if taken is None:
            return None
        packet = decode(*taken, self._version)
        if packet.kind == "CONNACK":
            self.accepted = packet.all("reason") == (0,)
        return packet

    def take(self) -> tuple[int, bytes] | None:
        """The next packet's first byte, and what follows its length."""
        if self._wire is None:
            raise Violation(f"{self.name} has no connection")
        while (taken := take(self._held)) is None:
            try:
                data = self._wire.receive()
            except TimeoutError:
                raise Violation(f"nothing came for {self.name}") from None
            if not data:
                if self._held:
                    raise Violation(f"the connection was closed inside a packet: {self._held.hex(' ')}")
                self.drop()
                return None
            self._held += data
        return taken

    def drop(self) -> None:
        """Let the connection break, and the broker know it."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None
            self.accepted = False


class Run:
    """One run of a script: for one version, over one transport."""

    def __init__(self, script: Script, version: int, transport: str, node: Node, clock: Clock, unique: str) -> None:
        self._script = script
        self._version = version
        self._transport = transport
        self._node = node
        self._clock = clock
        self._unique = unique
        self._clients: dict[str, Client] = {}
        self._names: dict[str, Value] = {}

    def play(self) -> None:
        """Take all steps.

        Raises:
            Violation: the broker did something else.
        """
        try:
            for (unordered, name), together in groupby(
                self._script.of(self._version), lambda step: (step.verb == "<*", step.client)
            ):
                if unordered:
                    self._await_all(self._client(name), list(together))
                else:
                    for step in together:
                        self._try(step)
            self._nothing_more()
        finally:
            for client in self._clients.values():
                client.drop()

    def _nothing_more(self) -> None:
        for client in self._clients.values():
            if client.accepted:
                try:
                    self._silent(client)
                except (Violation, Unreadable) as error:
                    raise self._violation(f"at its end, for {client.name}", error) from error

    def _try(self, step: Step) -> None:
        try:
            self._take(step)
        except (Violation, Unreadable) as error:
            raise self._violation(f"line {step.line}, {step.text}", error) from error

    def _violation(self, where: str, error: Exception) -> Violation:
        return Violation(f"scripts/{self._script.file}: {self._script.sentence}\n{where}:\n{error}")

    def _take(self, step: Step) -> None:
        if step.client == "clock":
            self._advance(float(step.verb))
            return
        if step.client == "node":
            self._restart(step.verb)
            return
        client = self._client(step.client)
        match step.verb:
            case ">":
                self._send(client, step)
            case "<" if step.kind.startswith("bytes"):
                self._await_bytes(client, bytes.fromhex(step.kind.removeprefix("bytes")))
            case "<":
                self._await(client, step.kind, step.awaited)
            case "connects":
                client.send(self._encode(client, "CONNECT", step.sent))
                self._await(client, "CONNACK", step.awaited)
            case "subscribes":
                client.send(self._encode(client, "SUBSCRIBE", step.sent))
                codes = step.awaited or tuple(("code", code) for code in _qos_asked(step.sent))
                self._await(client, "SUBACK", (*_id(step.sent), *codes))
            case "unsubscribes":
                client.send(self._encode(client, "UNSUBSCRIBE", step.sent))
                codes = step.awaited if self._version == 5 else ()
                self._await(client, "UNSUBACK", (*_id(step.sent), *codes))
            case "publishes":
                self._publish(client, step.sent)
            case "gets":
                self._acknowledge(client, self._await(client, "PUBLISH", step.awaited))
            case "silent":
                self._silent(client)
            case "ends":
                if self._version == 5:
                    self._await(client, "DISCONNECT", (("reason", step.kind),))
                self._closed(client)
            case "refused":
                if self._version == 5:
                    self._await(client, "CONNACK", (("reason", step.kind),))
                self._closed(client)
            case "closed":
                self._closed(client)
            case "leaves":
                client.send(encode("DISCONNECT", (), self._version))
                self._closed(client)
            case "drops":
                client.drop()

    def _client(self, name: str) -> Client:
        if name not in self._clients:
            listener = "-".join(filter(None, (self._transport, self._script.listener)))
            port = self._node.ports[listener]
            self._clients[name] = Client(name, port, TRANSPORTS[self._transport], self._version)
        return self._clients[name]

    def _advance(self, seconds: float) -> None:
        """Let time pass, and wait until the broker has: it ends a connection whose keep alive has run out with it."""
        watch = Client("clock", self._node.ports[self._transport], TRANSPORTS[self._transport], self._version)
        watch.send(encode("CONNECT", (("client", f"{self._unique}clock"), ("keep-alive", 1)), self._version))
        self._await(watch, "CONNACK", ())
        self._clock.advance(seconds)
        while watch.next() is not None:
            pass

    def _restart(self, verb: str) -> None:
        if verb == "dies":
            self._node.kill()
        elif verb != "starts":
            self._node.stop()
        if verb == "stops":
            return
        for client in self._clients.values():
            client.drop()
        self._clients.clear()
        self._node.start()

    # -- what a client sends

    def _send(self, client: Client, step: Step) -> None:
        if step.kind.startswith("bytes"):
            client.send(bytes.fromhex(step.kind.removeprefix("bytes")))
            return
        many = next(((name, _RANGE.fullmatch(value)) for name, value in step.sent if _RANGE.fullmatch(value)), None)
        if many is None:
            client.send(self._encode(client, step.kind, step.sent))
            return
        name, found = many
        assert found is not None
        for number in range(int(found[1]), int(found[2]) + 1):
            pairs = tuple((each, str(number) if each == name else value) for each, value in step.sent)
            client.send(self._encode(client, step.kind, pairs))

    def _encode(self, client: Client, kind: str, pairs: Pairs) -> bytes:
        fields = tuple(
            (name, self._names[text] if _NAME.fullmatch(text) else self._value(text)) for name, text in pairs
        )
        if kind == "CONNECT" and not any(name == "client" for name, _ in fields):
            fields = (("client", f"{self._unique}{client.name}"), *fields)
        return encode(kind, fields, self._version)

    def _value(self, text: str) -> Value:
        return value_of(text, self._unique)

    def _publish(self, client: Client, pairs: Pairs) -> None:
        qos = next((value for name, value in pairs if name == "qos"), "0")
        id = next((value for name, value in pairs if name == "id"), "1")
        if qos != "0":
            pairs = (*(pair for pair in pairs if pair[0] != "id"), ("id", id))
        client.send(self._encode(client, "PUBLISH", pairs))
        allowed = (("reason", "0|0x10"),)
        if qos == "0":
            self._silent(client)
        elif qos == "1":
            self._await(client, "PUBACK", (("id", id), *allowed))
        else:
            self._await(client, "PUBREC", (("id", id), *allowed))
            client.send(self._encode(client, "PUBREL", (("id", id),)))
            self._await(client, "PUBCOMP", (("id", id),))

    def _acknowledge(self, client: Client, message: Packet) -> None:
        (qos,) = message.all("qos")
        id = (("id", str(message.all("id")[0])),) if qos else ()
        if qos == 1:
            client.send(self._encode(client, "PUBACK", id))
        elif qos == 2:
            client.send(self._encode(client, "PUBREC", id))
            self._await(client, "PUBREL", id)
            client.send(self._encode(client, "PUBCOMP", id))

    def _silent(self, client: Client) -> None:
        client.send(encode("PINGREQ", (), self._version))
        self._await(client, "PINGRESP", ())

    # -- what comes for it

    def _closed(self, client: Client) -> None:
        packet = client.next()
        if packet is not None:
            raise Violation(f"{packet} came, and the connection is not closed")

    def _await(self, client: Client, kind: str, pairs: Pairs) -> Packet:
        packet = client.next()
        if packet is None:
            raise Violation("the connection was closed")
        if problem := self._differs(packet, kind, pairs):
            raise Violation(f"{problem}; what came: {packet}")
        return packet

    def _await_bytes(self, client: Client, wanted: bytes) -> None:
        taken = client.take()
        came = b"" if taken is None else bytes((taken[0], len(taken[1]))) + taken[1]
        if came != wanted:
            raise Violation(f"what came: {came.hex(' ')}")

    def _await_all(self, client: Client, steps: list[Step]) -> None:
        due = list(steps)
        while due:
            try:
                packet = client.next()
                if packet is None:
                    raise Violation("the connection was closed")
                fitting = next((step for step in due if self._is(packet, step)), None)
                if fitting is None:
                    raise Violation(f"none of these lines is {packet}")
            except (Violation, Unreadable) as error:
                raise self._violation(f"line {due[0].line} and those with it", error) from error
            due.remove(fitting)

    def _is(self, packet: Packet, step: Step) -> bool:
        """Whether a packet is what a line awaits; where it is not, the line's names stand for nothing yet."""
        before = dict(self._names)
        if self._differs(packet, step.kind, step.awaited):
            self._names = before
            return False
        return True

    def _differs(self, packet: Packet, kind: str, pairs: Pairs) -> str:
        """What is not as it should be; empty: nothing."""
        if packet.kind != kind:
            return f"not a {kind}"
        named = {name for name, _ in pairs}
        for name in sorted(named - self._unspoken(kind)):
            texts = [text for each, text in pairs if each == name]
            values = packet.all(name)
            if texts == ["none"]:
                if values:
                    return f"{name} is there"
            elif len(values) != len(texts):
                return f"{name} is there {len(values)} times, not {len(texts)}"
            elif name == "subscription-id":
                if sorted(map(str, values)) != sorted(str(self._value(text)) for text in texts):
                    return f"{name} is not {texts}"
            elif not all(self._fits(value, text) for value, text in zip(values, texts, strict=True)):
                return f"{name} is not {' '.join(texts)}"
        for name, value in packet.fields:
            if name not in named and value not in (0, b"") and _must_be_named(kind, name):
                return f"{name} is there"
        return ""

    def _unspoken(self, kind: str) -> set[str]:
        """Fields that this version does not have in such a packet."""
        unspoken: set[str] = set()
        if self._version == 3:
            unspoken.add("present")
        if self._version < 5 and kind != "CONNACK":
            unspoken.add("reason")
        return unspoken

    def _fits(self, value: Value, text: str) -> bool:
        if text == "any":
            return True
        if _NAME.fullmatch(text):
            return self._names.setdefault(text, value) == value
        if found := _RANGE.fullmatch(text):
            return isinstance(value, int) and int(found[1]) <= value <= int(found[2])
        if "|" in text:
            return any(self._fits(value, each) for each in text.split("|"))
        wanted = self._value(text)
        return value == wanted if isinstance(value, int) else raw(value) == raw(wanted)


def _must_be_named(kind: str, name: str) -> bool:
    if kind == "PUBLISH":
        return name in PROPERTIES or name in _MESSAGE or name == "payload"
    return name == "present" or (name == "reason" and kind in _REASONED)


def _id(sent: Pairs) -> Pairs:
    """The packet identifier that the answer to a SUBSCRIBE or UNSUBSCRIBE has."""
    return (("id", next((value for name, value in sent if name == "id"), "1")),)


def _qos_asked(sent: Pairs) -> list[str]:
    asked: list[str] = []
    for name, value in sent:
        if name == "filter":
            asked.append("0")
        elif name == "qos":
            asked[-1] = value
    return asked
