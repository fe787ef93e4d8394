"""A client is connected once it has proved who it is, and nothing is lost of what it sends meanwhile."""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from hashlib import pbkdf2_hmac, sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.auth import Access, Attempt, Challenge, Check, Gate, Proof, Scram, Verdict
from broker.clients import Clients
from broker.connection import AHEAD
from broker.listener import Limits, Listener
from broker.mqtt.codec import encode
from broker.mqtt.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Publish,
    Suback,
    Subscribe,
    Subscription,
    Will,
)
from broker.mqtt.properties import Properties, Property, first
from broker.mqtt.reason import Reason
from broker.passwords import Passwords
from broker.quotas import Meter, Quotas
from broker.scram import METHOD, derive
from broker.watched import Watched
from tests.broker.helpers import FOREVER, Client, Node

OK = Verdict(Reason.SUCCESS, "alice")


class Later:
    """Answers when the test does."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    def authenticate(self, check: Check) -> None:
        self.checks.append(check)


class Fixed:
    """Answers everyone alike, at once."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict

    def authenticate(self, check: Check) -> None:
        check.answer(self.verdict)


class Echo:
    """A method: what the client says is its name, after as many challenges as `rounds`."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def begin(self) -> Attempt:
        return _EchoAttempt(self.rounds)


class _EchoAttempt:
    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def step(self, data: bytes) -> Challenge | Proof | Verdict:
        if data == b"no":
            return Verdict(Reason.BAD_USER_NAME_OR_PASSWORD, why="it says no")
        self.rounds -= 1
        return Challenge(b"and " + data) if self.rounds >= 0 else Proof(data.decode(), b"hello " + data)


def node_with(access: Access, limits: Limits | None = None, quotas: Quotas | None = None) -> Node:
    node = Node(limits)
    meter = None if quotas is None else Meter(quotas, node.now)
    node.listener = Listener("front", node.limits, access=access, meter=meter)
    return node


def connect(
    node: Node, version: int = 5, *more: Packet, client_id: str = "c", properties: Properties = (), expiry: int = 0
) -> Client:
    client = node.open(version)
    if expiry:
        properties = ((Property.SESSION_EXPIRY_INTERVAL, expiry), *properties)
    client.send(Connect(client_id, version, True, 0, None, "alice", b"secret", properties), *more)
    return client


def said(method: str, data: bytes) -> Properties:
    return ((Property.AUTHENTICATION_METHOD, method), (Property.AUTHENTICATION_DATA, data))


# -- checks


@pytest.mark.parametrize("version", [3, 4, 5])
def test_a_client_is_connected_when_the_answer_comes_and_not_before(version: int) -> None:
    later = Later()
    client = connect(node_with(Access(later)), version)
    assert client.take_all() == []
    assert client.connection.session is None
    applicant = later.checks[0].applicant
    assert (applicant.client_id, applicant.username, applicant.password) == ("c", "alice", b"secret")
    assert (applicant.listener, applicant.host, applicant.certificate) == ("front", "192.0.2.1", "")
    later.checks[0].answer(OK)
    client.node.turn()
    (connack,) = client.take(Connack)
    assert connack.reason == 0
    assert client.connection.who.username == "alice"


def test_the_password_is_in_no_line_that_shows_an_applicant() -> None:
    later = Later()
    connect(node_with(Access(later)))
    assert "secret" not in repr(later.checks[0].applicant)


@pytest.mark.parametrize(
    ("reason", "version", "code"),
    [
        (Reason.BAD_USER_NAME_OR_PASSWORD, 5, 0x86),
        (Reason.BAD_USER_NAME_OR_PASSWORD, 4, 0x86),
        (Reason.NOT_AUTHORIZED, 5, 0x87),
        (Reason.NOT_AUTHORIZED, 3, 0x87),
        (Reason.SERVER_BUSY, 5, 0x89),
        (Reason.SERVER_BUSY, 4, 0x88),
        (Reason.CLIENT_IDENTIFIER_NOT_VALID, 4, 0x85),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_a_client_that_is_refused_is_told_the_code_alone_and_the_log_says_who_and_why(
    reason: Reason, version: int, code: int, at_once: bool, caplog: pytest.LogCaptureFixture
) -> None:
    later, verdict = Later(), Verdict(reason, why="because")
    client = connect(node_with(Access(Fixed(verdict) if at_once else later)), version)
    if not at_once:
        later.checks[0].answer(verdict)
        client.node.turn()
    assert client.take_all() == [Connack(False, code)]
    assert client.wire.said == []
    assert not client.open
    assert client.node.hub.sessions.all == {}
    assert client.node.hub.refused_logins == 1
    assert "client 'c' from 192.0.2.1:40000 at front: may not connect: because" in caplog.text


def test_what_follows_the_connect_is_handled_after_the_answer_in_order() -> None:
    later = Later()
    client = connect(node_with(Access(later)), 5, Subscribe(1, (Subscription("t", 1),)), Publish("t", b"1"))
    client.send(Publish("t", b"2"), Pingreq())
    client.send_bytes(encode(Publish("t", b"3"), 5)[:4])
    client.send_bytes(encode(Publish("t", b"3"), 5)[4:])
    assert client.take_all() == []
    later.checks[0].answer(OK)
    client.node.commit()
    assert [type(packet) for packet in client.wire.packets[:2]] == [Connack, Suback]
    assert client.payloads() == [b"1", b"2", b"3"]
    assert client.take(Pingresp) == [Pingresp()]


def test_while_an_answer_is_waited_for_nothing_is_read_and_afterwards_it_is() -> None:
    later = Later()
    client = connect(node_with(Access(later)))
    assert not client.wire.reading
    client.node.tick()
    assert not client.wire.reading
    later.checks[0].answer(OK)
    client.node.turn()
    assert client.wire.reading


def test_a_client_that_sends_on_and_on_without_its_connack_is_closed() -> None:
    later = Later()
    client = connect(node_with(Access(later)))
    client.send_bytes(bytes(AHEAD))
    assert client.open
    client.send_bytes(b"x")
    assert client.take_all() == [Connack(False, Reason.QUOTA_EXCEEDED)]
    assert not client.open
    assert later.checks[0].withdrawn
    later.checks[0].answer(OK)
    client.node.turn()
    assert client.node.hub.clients.count == 0


def test_an_ill_formed_packet_behind_the_connect_ends_the_connection_after_the_answer() -> None:
    later = Later()
    client = node_with(Access(later)).open()
    client.send_bytes(encode(Connect("c", 5, True, 0, None, None, None), 5) + b"\x00\x00")
    assert client.open
    later.checks[0].answer(OK)
    client.node.turn()
    assert [type(packet) for packet in client.wire.packets] == [Connack, Disconnect]
    assert not client.open


@pytest.mark.parametrize("version", [4, 5])
def test_a_second_connect_is_a_protocol_error_before_the_answer_too(version: int) -> None:  # MQTT-3.1.0-2
    later = Later()
    client = connect(node_with(Access(later)), version, Connect("d", version, True, 0, None, None, None))
    later.checks[0].answer(OK)
    client.node.turn()
    assert not client.open
    assert len(later.checks) == 1


def test_a_client_that_is_lost_meanwhile_is_not_connected_by_the_answer() -> None:
    later = Later()
    client = connect(node_with(Access(later)))
    client.lose()
    assert later.checks[0].withdrawn
    later.checks[0].answer(OK)
    client.node.turn()
    assert client.node.hub.sessions.all == {}


def test_an_answer_that_does_not_come_in_time_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    later = Later()
    client = connect(node_with(Access(later), Limits(connect_timeout=5)))
    client.node.tick(4)
    assert client.open
    client.node.tick(2)
    assert client.take_all() == [Connack(False, Reason.SERVER_BUSY)]
    assert later.checks[0].withdrawn
    assert "not sure who it is within 5 s" in caplog.text


def test_a_client_whose_answer_is_waited_for_does_not_take_over_a_session() -> None:
    later = Later()
    node = node_with(Access(later))
    owner = connect(node)
    later.checks[0].answer(OK)
    node.turn()
    thief = connect(node)
    assert owner.open
    later.checks[1].answer(Verdict(Reason.NOT_AUTHORIZED))
    node.turn()
    assert owner.open
    assert not thief.open


def test_an_error_of_ours_after_a_late_answer_ends_that_connection_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    later = Later()
    client = connect(node_with(Access(later)))

    def fails(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Clients, "connect", fails)
    later.checks[0].answer(OK)
    assert client.node.hub.crashed == 1
    assert not client.open
    assert "a bug" in caplog.text


def test_the_identity_that_the_transport_has_proved_is_the_user() -> None:
    client = node_with(Access(Gate(anonymous=False))).open()
    client.wire.identity = "device-7"
    client.send(Connect("c", 5, True, 0, None, None, None))
    assert client.take(Connack)[0].reason == 0
    assert client.connection.who.username == "device-7"


def test_a_will_that_the_user_may_not_publish_refuses_the_connection() -> None:
    node = node_with(Access(Fixed(OK)))
    client = node.open()
    client.send(Connect("c", 5, True, 0, Will("$SYS/x", b"", 0, False), None, None))
    assert client.take_all() == [Connack(False, Reason.NOT_AUTHORIZED)]


# -- quotas of connecting


@pytest.mark.parametrize(("version", "code"), [(5, Reason.CONNECTION_RATE_EXCEEDED), (4, Reason.SERVER_UNAVAILABLE)])
def test_clients_that_connect_too_often_are_refused_before_anyone_is_asked(version: int, code: Reason) -> None:
    later = Later()
    node = node_with(Access(later), quotas=Quotas(connect_rate=2))
    clients = [connect(node, version, client_id=str(n)) for n in range(3)]
    assert len(later.checks) == 2
    assert clients[2].take_all() == [Connack(False, code)]
    node.tick(0.5)
    assert connect(node, version, client_id="later").open


def test_a_user_has_so_many_connections_at_a_time() -> None:
    node = node_with(Access(Fixed(OK)), quotas=Quotas(user_connections=2))
    one, two, three = (connect(node, client_id=str(n)) for n in range(3))
    assert three.take_all() == [Connack(False, Reason.QUOTA_EXCEEDED)]
    again = connect(node, client_id="0")
    assert again.take(Connack)[0].reason == 0
    assert not one.open
    two.disconnect()
    assert connect(node, client_id="3").open


# -- enhanced authentication


def test_a_method_that_is_not_offered_is_refused() -> None:  # MQTT-4.12.0-1
    for access in (Access(), Access(Fixed(OK))):
        client = connect(node_with(access), properties=said("GS2-KRB5", b"x"))
        assert client.take_all() == [Connack(False, Reason.BAD_AUTHENTICATION_METHOD)]
        assert not client.open


def test_a_listener_that_asks_nothing_offers_no_method_either() -> None:
    client = connect(Node(), properties=said("", b"x"))
    assert client.take_all() == [Connack(False, Reason.BAD_AUTHENTICATION_METHOD)]


def test_an_exchange_ends_in_a_connack_and_every_packet_names_the_method() -> None:
    # MQTT-4.12.0-2 MQTT-4.12.0-3 MQTT-4.12.0-5
    node = node_with(Access(Fixed(Verdict(Reason.NOT_AUTHORIZED)), {"echo": Echo(2)}))
    client = connect(node, properties=said("echo", b"a"))
    assert client.take_all() == [Auth(Reason.CONTINUE_AUTHENTICATION, said("echo", b"and a"))]
    client.send(Auth(Reason.CONTINUE_AUTHENTICATION, said("echo", b"b")))
    assert client.take_all() == [Auth(Reason.CONTINUE_AUTHENTICATION, said("echo", b"and b"))]
    client.send(Auth(Reason.CONTINUE_AUTHENTICATION, said("echo", b"bob")), Pingreq())
    connack, pingresp = client.take_all()
    assert isinstance(connack, Connack)
    assert connack.reason == 0
    assert first(connack.properties, Property.AUTHENTICATION_METHOD) == "echo"
    assert first(connack.properties, Property.AUTHENTICATION_DATA) == b"hello bob"
    assert pingresp == Pingresp()
    assert client.connection.who.username == "bob"


def test_an_exchange_that_proves_nothing_ends_the_connection() -> None:  # MQTT-4.12.0-4
    for rounds in (0, 1):
        client = connect(node_with(Access(None, {"echo": Echo(rounds)})), properties=said("echo", b"no" * (1 - rounds)))
        if rounds:
            client.take(Auth)
            client.send(Auth(Reason.CONTINUE_AUTHENTICATION, said("echo", b"no")))
        assert client.take_all() == [Connack(False, Reason.BAD_USER_NAME_OR_PASSWORD)]
        assert client.wire.said == []
        assert not client.open


def test_a_challenge_that_the_client_does_not_take_ends_its_connection() -> None:
    """[MQTT-3.1.2-24]"""
    node = node_with(Access(None, {"echo": Echo(2)}))
    small = (Property.MAXIMUM_PACKET_SIZE, 19)
    client = connect(node, properties=(*said("echo", b"a"), small))
    assert client.take_all() == [Auth(Reason.CONTINUE_AUTHENTICATION, said("echo", b"and a"))]
    client.send(Auth(Reason.CONTINUE_AUTHENTICATION, said("echo", b"ab")))
    assert client.take_all() == [Connack(False, Reason.PACKET_TOO_LARGE)]
    assert not client.open


@pytest.mark.parametrize(
    "packet",
    [
        Auth(Reason.CONTINUE_AUTHENTICATION, said("other", b"x")),
        Auth(Reason.RE_AUTHENTICATE, said("echo", b"x")),
        Auth(Reason.SUCCESS, said("echo", b"x")),
        Pingreq(),
        Publish("t", b""),
        Subscribe(1, (Subscription("t", 0),)),
        Connect("c", 5, True, 0, None, None, None),
    ],
    ids=lambda packet: type(packet).__name__,
)
def test_during_an_exchange_only_the_next_auth_may_come(packet: Packet) -> None:  # MQTT-4.12.0-5
    client = connect(node_with(Access(None, {"echo": Echo(5)})), properties=said("echo", b"x"))
    client.take(Auth)
    client.send(packet)
    assert client.take_all() == [Connack(False, Reason.PROTOCOL_ERROR)]
    assert not client.open


def test_a_client_may_leave_during_an_exchange() -> None:
    client = connect(node_with(Access(None, {"echo": Echo(5)})), properties=said("echo", b"x"))
    client.take(Auth)
    client.disconnect()
    assert client.take_all() == []
    assert not client.open


def test_an_exchange_that_does_not_end_in_time_ends_the_connection() -> None:
    node = node_with(Access(None, {"echo": Echo(100)}), Limits(connect_timeout=5))
    client = connect(node, properties=said("echo", b"x"))
    for _ in range(3):
        node.tick(2)
        if client.open:
            client.send(Auth(Reason.CONTINUE_AUTHENTICATION, said("echo", b"x")))
    assert not client.open


def test_whom_a_method_proves_may_have_no_client_identifier_of_another_user() -> None:
    gate = Gate(False, client_ids="%u")
    node = node_with(Access(gate, {"echo": Echo(0)}, gate.admit))
    refused = connect(node, client_id="alice", properties=said("echo", b"bob"))
    assert refused.take_all() == [Connack(False, Reason.CLIENT_IDENTIFIER_NOT_VALID)]
    assert connect(node, client_id="bob", properties=said("echo", b"bob")).open


# -- proving it again


def proved(node: Node, name: bytes = b"bob") -> Client:
    client = connect(node, properties=said("echo", name))
    client.take(Auth)
    while not client.take(Connack):
        client.send(Auth(Reason.CONTINUE_AUTHENTICATION, said("echo", name)))
        client.take(Auth)
    return client


def test_a_client_proves_again_who_it_is_while_it_goes_on() -> None:
    client = proved(node_with(Access(None, {"echo": Echo(1)})))
    client.subscribe("t")
    client.send(Auth(Reason.RE_AUTHENTICATE, said("echo", b"bob")))
    assert client.take_all() == [Auth(Reason.CONTINUE_AUTHENTICATION, said("echo", b"and bob"))]
    client.publish("t", b"meanwhile")
    assert client.payloads() == [b"meanwhile"]
    client.send(Auth(Reason.CONTINUE_AUTHENTICATION, said("echo", b"bob")))
    assert client.take_all() == [Auth(Reason.SUCCESS, said("echo", b"hello bob"))]
    client.send(Auth(Reason.RE_AUTHENTICATE, said("echo", b"bob")))
    assert client.open


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (Auth(Reason.RE_AUTHENTICATE, said("other", b"bob")), Reason.PROTOCOL_ERROR),  # MQTT-4.12.1-1
        (Auth(Reason.CONTINUE_AUTHENTICATION, said("echo", b"bob")), Reason.PROTOCOL_ERROR),
        (Auth(Reason.RE_AUTHENTICATE, said("echo", b"no")), Reason.NOT_AUTHORIZED),  # MQTT-4.12.1-2
        (Auth(Reason.RE_AUTHENTICATE, said("echo", b"alice")), Reason.NOT_AUTHORIZED),
    ],
)
def test_who_does_not_prove_it_again_is_disconnected(packet: Auth, reason: Reason) -> None:
    client = proved(node_with(Access(None, {"echo": Echo(0)})))
    client.send(packet)
    assert client.take_all() == [Disconnect(reason)]
    assert not client.open


def test_a_client_without_a_method_may_not_begin_with_one_later() -> None:  # MQTT-4.12.0-6
    client = connect(node_with(Access(Fixed(OK), {"echo": Echo(0)})))
    client.take(Connack)
    client.send(Auth(Reason.RE_AUTHENTICATE, said("echo", b"bob")))
    assert client.take_all() == [Disconnect(Reason.PROTOCOL_ERROR)]


def test_without_a_method_in_the_connect_there_is_none_in_the_connack() -> None:
    client = connect(node_with(Access(Fixed(OK), {"echo": Echo(0)})))
    (connack,) = client.take(Connack)
    assert first(connack.properties, Property.AUTHENTICATION_METHOD) is None


# -- SCRAM-SHA-256 as a whole


def scram_file(tmp_path: Path) -> Watched[Passwords]:
    path = tmp_path / "passwords"
    path.write_text("")
    return Watched(path, lambda text, name: Passwords({}, {"alice": derive("wonder", b"salt", 4096)}))


@pytest.mark.parametrize("password", ["wonder", "wander"])
def test_scram_sha_256_connects_whoever_knows_the_password_and_proves_the_server_to_it(
    tmp_path: Path, password: str
) -> None:
    node = node_with(Access(Gate(False), {METHOD: Scram(scram_file(tmp_path))}))
    bare = b"n=alice,r=abc"
    client = connect(node, properties=said(METHOD, b"n,," + bare), expiry=FOREVER)
    challenge = first(client.take(Auth)[0].properties, Property.AUTHENTICATION_DATA)
    assert isinstance(challenge, bytes)
    fields = dict(each.split("=", 1) for each in challenge.decode().split(","))
    salted = pbkdf2_hmac("sha256", password.encode(), b64decode(fields["s"]), int(fields["i"]))
    key = hmac.digest(salted, b"Client Key", "sha256")
    without = b"c=biws,r=" + fields["r"].encode()
    message = b",".join((bare, challenge, without))
    signature = hmac.digest(sha256(key).digest(), message, "sha256")
    proof = b64encode(bytes(a ^ b for a, b in zip(key, signature, strict=True)))
    client.send(Auth(Reason.CONTINUE_AUTHENTICATION, said(METHOD, without + b",p=" + proof)))
    node.commit()
    (connack,) = client.take(Connack)
    if password == "wonder":
        server = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), message, "sha256")
        assert first(connack.properties, Property.AUTHENTICATION_DATA) == b"v=" + b64encode(server)
        assert client.connection.who.username == "alice"
    else:
        assert connack.reason == Reason.NOT_AUTHORIZED
        assert not client.open


# -- any order of things

PACKETS: list[Packet] = [
    Connect("c", 5, True, 0, None, None, None),
    Connect("c", 5, False, 0, Will("w", b"", 1, False), "alice", b"x"),
    Connect("c", 5, True, 0, None, None, None, said("echo", b"alice")),
    Connect("c", 5, True, 0, None, None, None, said("other", b"")),
    Auth(Reason.CONTINUE_AUTHENTICATION, said("echo", b"alice")),
    Auth(Reason.CONTINUE_AUTHENTICATION, said("echo", b"no")),
    Auth(Reason.RE_AUTHENTICATE, said("echo", b"bob")),
    Auth(Reason.RE_AUTHENTICATE, said("echo", b"alice")),
    Auth(),
    Subscribe(1, (Subscription("#", 2),)),
    Publish("t", b"x", 1, packet_id=1),
    Pingreq(),
    Disconnect(),
]
wires = st.lists(st.sampled_from([encode(packet, 5) for packet in PACKETS] + [b"\x00\x00"]), min_size=1, max_size=5)
steps = st.one_of(
    st.tuples(st.just("send"), st.integers(0, 2), wires.map(b"".join)),
    st.tuples(st.just("answer"), st.sampled_from([Reason.SUCCESS, Reason.NOT_AUTHORIZED]), st.just(b"")),
    st.tuples(st.just("tick"), st.integers(1, 6), st.just(b"")),
    st.tuples(st.just("lose"), st.integers(0, 2), st.just(b"")),
)


@given(st.lists(steps, max_size=15), st.integers(1, 40))
def test_in_whatever_order_things_come_nobody_is_connected_who_was_not_let_in(
    given_steps: list[tuple[str, int, bytes]], cut: int
) -> None:
    later = Later()
    node = node_with(Access(later, {"echo": Echo(1)}), Limits(connect_timeout=5))
    clients = [node.open() for _ in range(3)]
    let_in: set[Check] = set()
    for what, number, data in given_steps:
        if what == "send":
            for at in range(0, len(data), cut):
                if clients[number].open:
                    clients[number].send_bytes(data[at : at + cut])
        elif what == "answer":
            check = next((check for check in later.checks if not check.done), None)
            if check is not None:
                if number == Reason.SUCCESS:
                    let_in.add(check)
                check.answer(Verdict(Reason(number), "alice"))
        elif what == "tick":
            node.tick(number)
        elif clients[number].open:
            clients[number].lose()
            clients[number] = node.open()
        node.commit()
        assert node.hub.crashed == 0
        connected = [client.connection for client in clients if client.open and client.connection.session is not None]
        by_method = [connection for connection in connected if connection.renewal is not None]
        assert len(connected) - len(by_method) <= len(let_in)
        assert all(connection.who.username == "alice" for connection in connected)
        assert all(connection.login is None for connection in connected)
        assert node.hub.clients.count == len(connected)
